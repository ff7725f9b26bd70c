"""The Blind tab without a browser: setting up, voting, results, and what leaves the server."""

from __future__ import annotations

import csv
import io
import json
import random
import re
from dataclasses import replace

import gradio as gr
import pytest

from tests.ui.blind_world import NAMES, add_models, draw_next, drawn, wish
from vqdq.errors import UserError
from vqdq.jobs.protocol import Protocol
from vqdq.jobs.store import Workspace
from vqdq.ui import blind, blind_form, blind_pairs, blind_results, blind_setup, blind_tests
from vqdq.ui.blind import BlindLook
from vqdq.ui.desk import Desk
from vqdq.ui.live import Session, follow

INSIDE = Session().entering("blind")


@pytest.fixture
def desk(tmp_path):
    workspace = Workspace.open(tmp_path / "workspace")
    add_models(workspace)
    made = Desk(workspace, "demo")
    yield made
    made.votes.close()
    workspace.close()


def play(desk, run, person, answer, most=10**6):
    """Answers by the function that the API uses; `answer(shown)` is a choice."""
    asked, count = blind.vote(desk, run, person), 0
    while not asked["done"] and count < most:
        asked = blind.vote(desk, run, person, answer(asked), asked["ballot"], asked["question"])
        count += 1
    return count


def test_a_wish_becomes_a_protocol(desk):
    made = blind_setup.protocol_of(desk, wish(pairs=10, seeds="7, 9", identical=0.2, obvious=0.2))
    assert [entrant.name for entrant in made.models] == ["FP16", "basalt"]
    assert made.models[0].reference == "demo"
    assert len(made.models[0].digest) == 64
    assert made.seeds == (7, 9, 10)  # continued: 4 prompts, 10 pairs
    assert (made.identical, made.obvious, made.obvious_model.name) == (2, 2, "quartz")
    assert dict(made.drawing) == {"steps": "20", "guidance": "3"}
    assert "basalt" not in made.name
    few = blind_setup.protocol_of(desk, wish(pairs=2, obvious=0.5, variants=("quartz",)))
    assert len(few.prompts) == 2  # no prompt is named that nobody sees
    assert few.obvious_model is None  # every pair would be one
    levels = blind_setup.protocol_of(desk, wish(mode="staircase", variants=tuple(reversed(NAMES))))
    assert [entrant.bits for entrant in levels.models] == [16.0, 2.03, 3.03, 4.03]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"variants": ()}, "no compressed model"), ({"variants": ("granite",)}, "granite"),
        ({"mode": "staircase"}, "two or more bit widths"), ({"prompts": ()}, "no prompt"),
        ({"seeds": "seven"}, "not a seed"), ({"seeds": "9-7"}, "out of range"),
        ({"questions": ()}, "no question"), ({"pairs": 0}, "out of range"),
        ({"margin": 0.7}, "margin"), ({"mode": "guess"}, "kind of test"),
        ({"mode": "abx", "variants": ("basalt", "marble")}, "two models"),
    ],
)  # fmt: skip
def test_what_is_no_test_says_why(desk, values, said):
    with pytest.raises(UserError) as caught:
        blind_setup.protocol_of(desk, wish(**values))
    assert said in str(caught.value)
    shown = blind_setup.outlook_html(desk, wish(**values))
    assert "Not a test yet" in shown
    assert desk.votes.tests() == ()


def test_the_outlook_tells_power_pictures_and_time(desk):
    found = blind_setup.outlook(
        desk, wish(pairs=40, seeds="0-9", repeats=0, obvious=0, identical=0)
    )
    assert found.power[0] == "With 40 pairs you would detect a 73 : 27 preference with 80% power."
    assert "about 215 decided pairs" in found.power[1]
    assert (found.pictures, found.answers) == (80, 40)
    assert found.seconds > 0
    shown = blind_setup.outlook_html(desk, wish(pairs=40, seeds="0-9"))
    assert shown.count("vq-chip-estimated") == 2
    trials = blind_setup.outlook(desk, wish(mode="abx", pairs=4)).power
    assert trials == ("4 trials cannot tell anything from guessing. Use 5 or more.",)


def test_the_form_says_the_default_wish(desk):
    with gr.Blocks(analytics_enabled=False), gr.Tab("Blind") as tab:
        part = blind.build(desk, gr.State(INSIDE), tab)
        form = blind_form.build(desk)
    values = [getattr(component, "value", None) for component in form.inputs]
    values[2] = ["basalt"]
    found = blind_form.wish_of(values)
    assert len(found.prompts) == blind_form.PROMPTS
    plain = replace(found, prompts=(), variants=())
    assert plain == blind_setup.Wish(variants=(), prompts=())
    assert len(follow(part.regions, INSIDE)) == len(part.regions)
    assert isinstance(blind_form.asked_for([*values[:4], "many", *values[5:]]), UserError)


def test_drawing_is_told_without_a_model(desk):
    run = blind.submit(desk, wish())
    for session in (INSIDE, INSIDE.showing(blind=run)):
        assert "Waiting" in blind.main_html(desk, session) or "waiting" in blind.main_html(
            desk, session
        )
    with pytest.raises(UserError, match="not drawn yet"):
        blind.vote(desk, run, "Ana")
    draw_next(desk)
    test = blind_tests.find(desk, run)
    page = blind.main_html(desk, INSIDE.showing(blind=run))
    assert test.test.test in page  # the hash, before the first vote
    assert "Who votes?" in page
    record = json.dumps(desk.workspace.run(run).result)
    record += (test.run.folder / "run.json").read_text()
    for name in NAMES:
        assert name not in record
        assert name not in blind.main_html(desk, INSIDE)  # the list
    assert blind_tests.find(desk, test.test.test[:10]).run.id == run
    with pytest.raises(UserError, match="no such blind test"):
        blind_tests.find(desk, "nothing")


def test_what_a_voter_gets_says_nothing(desk):
    run = drawn(desk, identical=0.5, obvious=0.5, repeats=0.5)
    session = INSIDE.showing(blind=run).looking(BlindLook(person="Ana"))
    seen, sizes = set(), set()
    for _ in range(40):
        parts = [
            render(desk, session)
            for render in (blind.main_html, blind.pictures_html, blind.answers_html)
        ]
        everything = "".join(parts)
        if "Thank you" in everything:
            break
        for word in (*NAMES, "FP16", "demo", "identical", "obvious", "repeat", "Stones"):
            assert word not in everything
        files = re.findall(r"sealed/([0-9a-f]{32}\.png)", parts[1])
        assert len(files) == 2
        for name in files:
            status = (desk.workspace.run(run).folder / "sealed" / name).stat()
            sizes.add((status.st_size, status.st_mtime))
        seen |= set(files)
        choice, ballot, question = (
            re.search(f'data-{key}="([^"]+)"', parts[2])[1]
            for key in ("choice", "ballot", "question")
        )
        data = {"act": "vote", "run": run, "person": "Ana", "choice": choice, "zoom": "fit"}
        session = blind._acted(desk, session, data | {"ballot": ballot, "question": question})
    assert len(seen) == 2 * (4 + 2 + 2 + 2)
    assert len(sizes) == 1
    votes = desk.votes.votes(blind_tests.find(desk, run).test.test)
    assert len(votes) == 10
    assert votes[0].context == {"zoom": "fit"}


def test_two_people_do_not_see_each_other(desk):
    run = drawn(desk)
    play(desk, run, "Ana", lambda _: "a")
    first = blind.vote(desk, run, "Ben")
    assert first["answered"] == 0
    ben = INSIDE.showing(blind=run).looking(BlindLook(person="Ben"))
    assert "Ana" not in blind.main_html(desk, ben) + blind.answers_html(desk, ben)
    with pytest.raises(UserError, match="only at the end"):
        blind.results(desk, run)
    again = blind.vote(desk, run, "Ben", "b", first["ballot"], first["question"])
    assert again["answered"] == 1
    assert blind.vote(desk, run, "Ben", "undo")["ballot"] == first["ballot"]


def test_results_in_words_numbers_files_and_pairs(desk):
    run = drawn(desk, pairs=4, seeds="1", obvious=0.25, identical=0.25, variants=("marble",))
    rng = random.Random(0)
    play(desk, run, "=Ana <b>", lambda _: rng.choice(["a", "b", "equal"]))
    play(desk, run, "Ben", lambda _: "equal", most=2)
    found = blind.results(desk, run, reveal=True)
    assert found["early"]
    assert Protocol.from_json(found["protocol"]).digest == found["test"]
    assert found["words"][0].startswith("overall: No difference detected (n = 4)")
    session = INSIDE.showing(blind=run)
    shown = blind._results(desk, session)[1]
    for word in ("No difference detected (n = 4)", "60 : 40", "stopped before everybody", "marble",
                 "Read with care", found["test"]):  # fmt: skip
        assert word in shown
    assert "identical" not in shown.replace("of the identical pictures equal", "")
    assert "<b>" not in shown.replace("<b>Overall</b>", "")
    folder = desk.workspace.run(run).folder / "results"
    assert {path.name for path in folder.iterdir()} == {
        "votes.csv", "results.json", "preferences.png", "preferences.svg", "preferences.csv"
    }  # fmt: skip
    rows = list(csv.DictReader(io.StringIO((folder / "votes.csv").read_text())))
    kept = json.loads((folder / "results.json").read_text())
    log = desk.votes.log(found["test"])
    assert [row["choice"] for row in rows] == [vote.choice for vote in log]
    assert {row["assessor"] for row in rows} == {"'=Ana <b>", "Ben"}  # no spreadsheet computes it
    assert [row["a"] for row in rows] == [vote["a"] for vote in kept["votes"]]
    seen = blind.seen_html(desk, session)
    judged = {(vote.shown["pair"], vote.shown["kind"]) for vote in log}
    assert seen.count("vq-blind-one") == len(judged)
    assert "check: an obvious difference" in seen
    assert "&lt;b&gt;" in seen
    checks = blind.seen_html(desk, session.looking(BlindLook(pairs="checks")))
    assert checks.count("vq-blind-one") < seen.count("vq-blind-one")
    assert blind.main_html(desk, session) == ""
    assert "Results shown, stopped early · 2 people" in blind.main_html(desk, INSIDE)
    with pytest.raises(UserError, match="no open question"):
        blind.vote(desk, run, "Ben", "a", "x", "overall")


def test_three_models_abx_and_a_staircase(desk):
    three = drawn(desk, variants=("basalt", "marble"), repeats=0, identical=0)
    play(desk, three, "Ana", lambda _: random.choice("ab"))
    blind.results(desk, three, reveal=True)
    shown = blind._results(desk, INSIDE.showing(blind=three))[1]
    assert "Order" in shown
    assert "No obvious pairs were judged" not in shown  # quartz served for them
    test = drawn(desk, mode="abx", pairs=8, seeds="1-2")
    asked = blind.vote(desk, test, "Ana")
    assert asked["choices"] == ["a", "b", "skip"]
    assert sorted(asked["pictures"]) == ["a", "b", "x"]
    play(desk, test, "Ana", lambda now: truth(desk, test, "Ana", now))
    blind.results(desk, test, reveal=True)
    assert "Told apart: 100%" in blind._results(desk, INSIDE.showing(blind=test))[1]
    items = blind_pairs.judged(
        blind_tests.find(desk, test).test.protocol,
        desk.votes.votes(blind_tests.find(desk, test).test.test),
    )
    assert [item.sort for item in items] == ["right"] * 8
    climb = drawn(desk, mode="staircase", variants=tuple(NAMES))
    count = play(desk, climb, "Ana", lambda now: truth(desk, climb, "Ana", now), most=200)
    blind.results(desk, climb, reveal=True)
    assert (
        "Still told apart at 4.03 bits, the most that was shown (95% interval"
        in (blind._results(desk, INSIDE.showing(blind=climb))[1])
    )
    assert count == 60


def truth(desk, run, person, now):
    """The right answer of an ABX trial, which only the server knows."""
    ballot = blind_tests.find(desk, run).test.next_question(person).ballot
    assert ballot.token == now["ballot"]
    return ballot.x


def test_a_test_is_deleted_and_a_lost_one_is_said(desk):
    run = drawn(desk)
    play(desk, run, "Ana", lambda _: "a", most=1)
    session = INSIDE.showing(blind=run)
    after = blind._acted(desk, session, {"act": "delete", "run": run})
    assert after.run("blind") == ""
    assert len(desk.votes.tests()) == 1  # votes are append-only
    assert "Ask people" in blind.main_html(desk, after)
    assert "no run" in blind.main_html(desk, session)  # an old link says so


def test_believed_shares_without_controls_are_unknown(desk):
    run = drawn(desk, identical=0, obvious=0, repeats=0)
    play(desk, run, "Ana", lambda _: "equal")
    blind.results(desk, run, reveal=True)
    shown = blind_results.results_html(blind_tests.find(desk, run))
    assert "No obvious pairs were judged" in shown
    assert "Every pair was a tie" in shown
