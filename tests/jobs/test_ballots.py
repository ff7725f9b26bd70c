"""Order, sides and names: balanced, repeatable, and telling nothing."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.jobs.test_protocol import FOUR, FP16, THREE, TWO, protocol
from vqdq.errors import UserError
from vqdq.jobs import ballots as module
from vqdq.jobs.ballots import assessor_key, assessor_name, ballots, pictures_of, staircase_ballot
from vqdq.jobs.protocol import Question

PEOPLE = ("Ana", "Ben", "Çem")


@pytest.mark.parametrize("person", PEOPLE)
def test_everything_is_there_once(person):
    shown = ballots(protocol(), person)
    kinds = Counter(ballot.trial.kind for ballot in shown)
    assert kinds == {"pair": 30, "identical": 2, "obvious": 2, "repeat": 3}
    pairs = [ballot.trial.pair for ballot in shown if ballot.trial.kind == "pair"]
    assert len(set(pairs)) == 30
    assert [ballot.number for ballot in shown] == list(range(1, 38))
    assert {ballot.total for ballot in shown} == {37}


@pytest.mark.parametrize("person", PEOPLE)
def test_sides_are_balanced_for_every_two_models(person):
    shown = ballots(protocol(models=(FP16, THREE, FOUR)), person)
    for models in ((0, 1), (0, 2), (1, 2)):
        sides = [
            b.swapped
            for b in shown
            if b.trial.kind == "pair" and (b.trial.first, b.trial.second) == models
        ]
        assert (len(sides), sum(sides)) == (30, 15)
    for ballot in shown:
        a, b = (picture.entrant for _, picture in ballot.pictures)
        order = (ballot.trial.second, ballot.trial.first)
        assert (a, b) == (order if ballot.swapped else order[::-1])


@pytest.mark.parametrize("person", PEOPLE)
@pytest.mark.parametrize("pairs", [1, 4, 10, 30, 40])
def test_repeats_come_later_and_swapped(person, pairs):
    shown = ballots(protocol(pairs=pairs, repeats=0.25), person)
    first = {b.trial.pair: b for b in shown if b.trial.kind == "pair"}
    repeats = [b for b in shown if b.trial.kind == "repeat"]
    assert len(repeats) == max(1, round(pairs / 4))
    for again in repeats:
        before = first[again.trial.pair]
        assert again.number > before.number + (module._GAP if pairs >= 10 else 0)
        assert again.swapped != before.swapped
        assert [p for _, p in again.pictures] == [p for _, p in before.pictures][::-1]
        assert not {t for t, _ in again.pictures} & {t for t, _ in before.pictures}


def test_the_same_after_a_restart_and_different_for_others():
    first = ballots(protocol(), "Ana")
    assert ballots(protocol(), " ana ") == first
    for other in (ballots(protocol(), "Ben"), ballots(protocol(order_seed="0" * 32), "Ana")):
        assert [b.trial.pair for b in other] != [b.trial.pair for b in first]
        assert not set(pictures_of(other)) & set(pictures_of(first))
        assert not {b.token for b in other} & {b.token for b in first}


def test_first_model_is_equally_often_left_over_people_and_places():
    left = Counter()
    for number in range(60):
        for ballot in ballots(protocol(pairs=10, repeats=0.0), f"person {number}"):
            if ballot.trial.kind == "pair":
                left[ballot.trial.pair] += not ballot.swapped
    assert sum(left.values()) == 300  # exactly half of 600
    assert all(15 <= count <= 45 for count in left.values())  # 30 ± 3.9 standard deviations


def test_what_is_shown_tells_nothing():
    test = protocol(models=(FP16, THREE, FOUR))
    secrets = [e.name for e in test.entrants] + [e.digest * 4 for e in test.entrants]
    secrets += [test.order_seed, test.digest, "identical", "repeat", "obvious", "seed", "swapped"]
    for ballot in ballots(test, "Ana"):
        for question in test.asked:
            text = json.dumps(ballot.shown(question, test.choices))
            assert not [word for word in secrets if word in text]
    keys = {frozenset(b.shown(test.asked[0], test.choices)) for b in ballots(test, "Ana")}
    assert len(keys) == 1  # a control has the fields of any other pair


def test_names_are_random_looking_and_never_shared():
    shown = ballots(protocol(), "Ana")
    names = [name for b in shown for name, _ in b.pictures] + [b.token for b in shown]
    assert len(set(names)) == len(names) == 3 * 37
    assert all(len(name) == 32 and set(name) <= set("0123456789abcdef") for name in names)
    digits = Counter("".join(names))
    assert all(abs(count - 222) < 5 * 222**0.5 for count in digits.values())  # 111 × 32 / 16
    same = next(b for b in shown if b.trial.kind == "identical")
    (one, first), (two, second) = same.pictures
    assert first == second  # one picture under two names
    assert one != two


def test_the_prompt_is_shown_only_where_it_is_asked_about():
    ballot = ballots(protocol(), "Ana")[0]
    with_it = Question(key="match", text="?")
    without = Question(key="beauty", text="?", shows_prompt=False)
    assert ballot.shown(with_it, ())["prompt"] == ballot.trial.prompt
    assert ballot.shown(without, ())["prompt"] == ""


def test_abx_has_a_third_picture_and_no_controls():
    shown = ballots(protocol(mode="abx", pairs=40), "Ana")
    assert {b.trial.kind for b in shown} == {"pair"}
    assert 8 <= sum(b.x == "a" for b in shown) <= 32
    for ballot in shown:
        (_, a), (_, b), (name, x) = ballot.pictures
        assert x == (a if ballot.x == "a" else b)
        assert a != b
        assert set(ballot.shown(protocol(mode="abx").asked[0], ())["pictures"]) == {"a", "b", "x"}
        assert "prompt" not in name


def test_staircase_trials_follow_from_their_number():
    test = protocol(
        mode="staircase", models=(FP16, TWO, THREE, FOUR), obvious_model=None, obvious=0
    )
    first = [staircase_ballot(test, "Ana", number, 2) for number in range(1, 41)]
    assert len({(b.trial.prompt, b.trial.seed) for b in first}) == 40  # every cell before any again
    assert len({b.token for b in first}) == 40
    assert staircase_ballot(test, "Ana", 7, 2) == first[6]
    other = staircase_ballot(test, "Ana", 7, 3)
    assert other.token != first[6].token
    assert {p.entrant for _, p in other.pictures} == {0, 3}
    assert staircase_ballot(test, "Ana", 41, 2).trial.prompt in test.prompts


def test_a_vote_is_kept_with_what_was_shown():
    test = protocol()
    for ballot in ballots(test, "Ana"):
        kept = ballot.record(test)
        names = {test.entrants[ballot.trial.first].name, test.entrants[ballot.trial.second].name}
        assert {kept["a"], kept["b"]} == names
        assert kept["number"] == ballot.number
        assert kept["b" if ballot.swapped else "a"] == test.entrants[ballot.trial.first].name


def test_names_of_people():
    assert assessor_name("  Ana   María ") == "Ana María"
    assert assessor_name("e\u0301") == "\u00e9"
    assert assessor_key("ANA") == assessor_key("ana")
    for bad in ("", "  ", "a" * 81, "a\x00b", "\u202e"):
        with pytest.raises(UserError, match="needs a name"):
            assessor_name(bad)
