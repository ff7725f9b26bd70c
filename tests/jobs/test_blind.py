"""A blind test played through by simulated people: what they see, and what comes out."""

from __future__ import annotations

import hashlib
import json
import os
import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from scipy import stats
from statsmodels.stats.multitest import multipletests

from tests.jobs.test_protocol import FOUR, FP16, THREE, TWO, protocol
from vqdq.errors import UserError
from vqdq.jobs.ballots import ballots
from vqdq.jobs.blind import BlindTest, seal
from vqdq.jobs.protocol import QUESTIONS
from vqdq.jobs.votes import VoteStore

OVERALL = (QUESTIONS[3],)


@pytest.fixture
def store(tmp_path):
    made = VoteStore.open(tmp_path / "votes.sqlite")
    yield made
    made.close()


def start(store, **values):
    return BlindTest(store, store.freeze(protocol(**values)))


def play(test, person, answer, most=10**6):
    """Answers what is asked: `answer(entrant of A, entrant of B, ballot)` is a choice."""
    asked, count = test.next_question(person), 0
    while asked is not None and count < most:
        entrants = [test.protocol.entrants[p.entrant].name for _, p in asked.ballot.pictures]
        choice = answer(entrants[0], entrants[1], asked.ballot)
        asked = test.vote(person, asked.shown["ballot"], asked.shown["question"], choice)
        count += 1
    return count


def by_taste(seed, chance, ties=0.0):
    """Prefers full precision with that chance, whatever side it is on; sees the obvious."""
    rng = random.Random(seed)

    def answer(a, b, _):
        if a == b:
            return "equal"
        if TWO.name in (a, b):
            return "a" if b == TWO.name else "b"
        if rng.random() < ties:
            return rng.choice(["equal", "both bad"])
        return "a" if (a == FP16.name) == (rng.random() < chance) else "b"

    return answer


def test_votes_count_for_the_model_and_not_for_the_side(store):
    test = start(store, pairs=40, questions=OVERALL)
    assert play(test, "Ana", by_taste(0, 1.0)) == 40 + 4 + 4
    found = test.reveal()
    (row,) = found.comparisons
    assert (row.first, row.second) == (FP16.name, THREE.name)
    assert (row.preference.tally.wins, row.preference.tally.judged) == (40, 40)
    assert row.verdict.winner == FP16.name
    (ana,) = found.assessors
    assert ana.left.value == pytest.approx(0.5, abs=0.06)  # sides are balanced
    assert ana.same_twice.value == ana.identical_called_equal.value == ana.obvious_seen.value == 1
    assert ana.concerns() == ()
    assert len(found.words()) == 1


def test_who_always_says_left_is_found_out(store):
    test = start(store, pairs=40, questions=OVERALL)
    play(test, "Ana", lambda *_: "a")
    found = test.reveal()
    (row,) = found.comparisons
    assert (row.preference.tally.wins, row.preference.tally.losses) == (20, 20)
    assert row.verdict.kind == "undetected"
    (ana,) = found.assessors
    assert ana.left.value == 1
    assert ana.same_twice.value == ana.identical_called_equal.value == 0
    assert ana.concerns()[0] == "Ana favoured the left side (100% left)."
    assert "Ana called 0% of the identical pictures equal." in found.words()
    assert "Ana gave 0% of the repeated answers again." in found.words()


def test_questions_are_asked_apart_and_all_are_counted(store):
    test = start(store, pairs=20, identical=0, obvious=0, repeats=0.0)
    tastes = {"match": "equal", "defects": "skip", "beauty": "both bad", "overall": "a"}
    keys = []
    asked = test.next_question("Ana")
    while asked is not None:
        keys.append(asked.shown["question"])
        assert asked.answered == len(keys) - 1
        assert asked.questions == 80
        key = asked.shown["question"]
        asked = test.vote("Ana", asked.shown["ballot"], key, tastes[key])
    assert keys == ["match", "defects", "beauty", "overall"] * 20
    found = test.reveal()
    assert found.words()[-1].startswith("No obvious pairs were judged")
    tallies = {row.question: row.preference.tally for row in found.comparisons}
    assert (tallies["match"].ties, tallies["match"].both_bad) == (20, 0)
    assert tallies["defects"].judged == 0  # skipped
    assert tallies["beauty"].both_bad == 20
    assert tallies["overall"].decisive == 20


def test_several_people_decide_by_majority(store):
    test = start(store, pairs=30, questions=OVERALL, repeats=0.0)
    for person, chance in (("Ana", 1.0), ("Ben", 1.0), ("Cem", 0.0)):
        play(test, person, by_taste(1, chance))
    found = test.reveal()
    (row,) = found.comparisons
    assert (row.preference.tally.wins, row.preference.tally.judged) == (30, 30)  # pairs, not votes
    assert row.agreement.units == 30
    assert row.agreement.observed == pytest.approx(1 / 3)
    assert row.agreement.alpha < 0
    assert [person.name for person in found.assessors] == ["Ana", "Ben", "Cem"]


def test_p_values_are_those_of_the_votes_after_holm(store):
    test = start(store, pairs=40, seeds=(1, 2))
    play(test, "Ana", by_taste(3, 0.7, ties=0.2))
    rows = test.reveal().comparisons
    plain = []
    for row in rows:
        tally = row.preference.tally
        assert tally.judged == 40
        assert row.preference.prompts == 20  # two seeds a prompt
        plain.append(stats.binomtest(tally.wins, tally.decisive).pvalue)
        assert row.preference.p_value == pytest.approx(plain[-1], rel=1e-9)
    wanted = multipletests([row.preference.p_by_prompt for row in rows], method="holm")[1]
    assert [row.preference.adjusted for row in rows] == pytest.approx(list(wanted))


def test_three_models_are_ranked(store):
    models = (FP16, replace(FOUR, name="four"), THREE)
    test = start(store, models=models, pairs=40, questions=OVERALL, repeats=0.0)
    worth = {FP16.name: 2.0, "four": 1.0, THREE.name: 0.2, TWO.name: 0.001}
    rng = random.Random(0)

    def answer(a, b, _):
        return "equal" if a == b or rng.random() < 0.2 else (
            "a" if rng.random() < worth[a] / (worth[a] + worth[b]) else "b"
        )  # fmt: skip

    play(test, "Ana", answer)
    found = test.reveal()
    assert len(found.comparisons) == 3
    (ranking,) = found.rankings
    assert [row.model for row in ranking.standings] == [FP16.name, "four", THREE.name]
    json.dumps(found.to_json(), allow_nan=False)


def test_too_few_votes_give_no_order(store):
    test = start(store, models=(FP16, FOUR, THREE), pairs=2, questions=OVERALL)
    play(test, "Ana", by_taste(0, 1.0), most=1)
    (ranking,) = test.reveal(early=True).rankings
    assert ranking.standings == ()
    assert ranking.why


def test_results_only_at_the_end(store):
    test = start(store, pairs=4, questions=OVERALL, repeats=0.0, identical=0, obvious=0)
    with pytest.raises(UserError, match="nobody has voted"):
        test.reveal()
    play(test, "Ana", by_taste(0, 1.0))
    play(test, "Ben", by_taste(0, 1.0), most=3)
    with pytest.raises(UserError, match="only at the end"):
        test.outcome()
    assert test.unfinished() == ("Ben",)
    with pytest.raises(UserError, match="Ben did not finish"):
        test.reveal()
    found = test.reveal(early=True)
    assert found.early
    assert "stopped before everybody had finished" in found.words()[-1]
    assert test.next_question("Ben") is None
    with pytest.raises(UserError, match="no open question"):
        test.vote("Ben", "x", "overall", "a")
    with pytest.raises(UserError, match="no longer blind"):
        test.undo("Ben")
    again = BlindTest(store, test.test)  # after a restart
    assert again.outcome() == found == again.reveal()


def test_undo_asks_the_same_question_again(store):
    test = start(store, pairs=4)
    first = test.next_question("Ana")
    second = test.vote("Ana", first.shown["ballot"], first.shown["question"], "a")
    assert second.shown["question"] != first.shown["question"]
    assert test.undo("Ana") == first
    test.vote("Ana", first.shown["ballot"], first.shown["question"], "b")
    assert [(v.choice, v.withdrawn) for v in store.log(test.test)] == [("a", True), ("b", False)]


def test_only_what_is_asked_can_be_answered(store):
    test = start(store, pairs=4)
    now = test.next_question("Ana")
    later = ballots(test.protocol, "Ana")[1]
    for ballot, question in (
        (later.token, "match"), (now.shown["ballot"], "overall"), ("0" * 32, "match"),
    ):  # fmt: skip
        with pytest.raises(UserError, match="not the question that is asked now"):
            test.vote("Ana", ballot, question, "a")
    with pytest.raises(UserError, match="is not an answer"):
        test.vote("Ana", now.shown["ballot"], "match", "left")
    test.vote("Ana", now.shown["ballot"], "match", "a")
    with pytest.raises(UserError, match="not the question"):  # the second click
        test.vote("Ana", now.shown["ballot"], "match", "a")
    assert len(store.votes(test.test)) == 1


def test_only_the_present_pictures_are_served(store):
    test = start(store, pairs=4)
    now, *later = ballots(test.protocol, "Ana")
    for name, picture in now.pictures:
        assert test.picture("Ana", name) == picture
    for person, name in (("Ana", later[0].pictures[0][0]), ("Ben", now.pictures[0][0])):
        with pytest.raises(UserError, match="no such picture now"):
            test.picture(person, name)


def test_abx_finds_who_can_tell(store):
    test = start(store, mode="abx", pairs=40)
    rng = random.Random(4)
    play(test, "Ana", lambda _a, _b, ballot: ballot.x)
    play(test, "Ben", lambda *_: rng.choice("ab"))
    named = dict(test.reveal().detections)
    assert named["Ana"].words.startswith("Told apart: 100%")
    assert named["Ben"].words.startswith("No difference detected (n = 40)")
    assert named["everybody"].trials == 80


def test_a_staircase_finds_the_bit_width(store):
    levels = (FP16, TWO, THREE, FOUR, replace(FOUR, name="6", bits=6.0))
    test = start(store, mode="staircase", models=levels, obvious=0, obvious_model=None)
    rng = random.Random(2)

    def answer(a, b, ballot):
        bits = {e.name: e.bits for e in levels}
        return ballot.x if min(bits[a], bits[b]) < 3.5 or rng.random() < 0.5 else (
            "ab"[ballot.x == "a"]
        )  # fmt: skip

    play(test, "Ana", answer, most=5)
    again = BlindTest(VoteStore.open(store.path), test.test)  # resumes where it stopped
    assert again.next_question("Ana").ballot == test.next_question("Ana").ballot
    again.store.close()
    count = play(test, "Ana", answer)
    ((name, found),) = test.reveal().thresholds
    assert name == "Ana"
    assert found.trials == count + 5
    assert found.bits.contains(3.5)


def test_skipping_everything_ends(store):
    levels = (FP16, TWO, THREE)
    test = start(store, mode="staircase", models=levels, obvious=0, obvious_model=None)
    assert play(test, "Ana", lambda *_: "skip") == 120
    ((_, found),) = test.reveal().thresholds
    assert found.trials == 0


def test_a_sealed_copy_has_the_pixels_and_nothing_else(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    meta = PngImagePlugin.PngInfo()
    meta.add_text("recipe", "trellis 3 bits")
    source = tmp_path / "trellis-3-bits.png"
    Image.fromarray(pixels).save(source, pnginfo=meta, dpi=(300, 300))
    copy = seal(source, tmp_path / "sealed", "f" * 32)
    assert copy.name == "f" * 32 + ".png"
    with Image.open(copy) as picture:
        assert picture.info == {}
        assert np.array_equal(np.asarray(picture), pixels)
    assert b"trellis" not in copy.read_bytes()
    other = tmp_path / "other.png"
    Image.fromarray(pixels).save(other, compress_level=1)
    again = seal(other, tmp_path / "sealed", "0" * 32)
    first, second = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (copy, again))
    assert first == second  # how it was stored before does not show
    flat = seal_of(tmp_path, np.zeros_like(pixels))
    sizes = {(os.stat(path).st_size, os.stat(path).st_mtime) for path in (copy, again, flat)}
    assert len(sizes) == 1  # how well it packs does not show either
    assert {path.suffix for path in (tmp_path / "sealed").iterdir()} == {".png"}


def seal_of(folder, pixels):
    path = folder / "source.png"
    Image.fromarray(pixels).save(path)
    return seal(path, folder / "sealed", "a" * 32)


def test_a_damaged_picture_is_said(tmp_path):
    bad = tmp_path / "bad.png"
    for content in (b"", b"\x89PNG\r\n\x1a\n" + b"x" * 60):
        bad.write_bytes(content)
        with pytest.raises(UserError, match="not a picture"):
            seal(bad, tmp_path, "name")
    with pytest.raises(UserError, match="not a picture"):
        seal(tmp_path / "absent.png", tmp_path, "name")


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_votes_and_undos_ends_with_every_answer_once(store, seed):
    test = start(store, pairs=5, questions=QUESTIONS[:2], primary="match", identical=1)
    rng = random.Random(seed)
    trail = {"Ana": [], "Ben": []}
    while any(len(steps) < 2 * 9 for steps in trail.values()):  # 5 + 1 + 2 + 1 repeat
        person = rng.choice(sorted(trail))
        steps = trail[person]
        asked = test.next_question(person)
        assert (asked is None) == (len(steps) == 18)
        if steps and rng.random() < 0.3:
            back = test.undo(person)
            assert (back.shown["ballot"], back.shown["question"]) == steps.pop()[:2]
        elif asked is not None:
            assert asked.answered == len(steps)
            choice = rng.choice(test.protocol.choices)
            steps.append((asked.shown["ballot"], asked.shown["question"], choice))
            test.vote(person, *steps[-1])
    for person, steps in trail.items():
        kept = [(v.ballot, v.question, v.choice) for v in store.votes(test.test, person)]
        assert kept == steps
    assert not test.reveal().early
