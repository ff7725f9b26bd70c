"""A protocol is frozen: what is in its hash, what is refused, and reading it back."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from vqdq.errors import UserError
from vqdq.jobs.protocol import ABX_CHOICES, CHOICES, QUESTIONS, Entrant, Protocol, Question

FP16 = Entrant(name="full precision", digest="aa", bits=16.0)
THREE = Entrant(name="trellis 3", digest="bb", bits=3.0)
FOUR = Entrant(name="trellis 4", digest="cc", bits=4.0)
TWO = Entrant(name="uniform 2", digest="dd", bits=2.0)


def protocol(**values):
    plain = {
        "name": "three bits",
        "models": (FP16, THREE),
        "prompts": tuple(f"prompt {i}" for i in range(20)),
        "seeds": (1, 2),
        "pairs": 30,
        "obvious": 2,
        "obvious_model": TWO,
        "drawing": (("steps", "20"), ("scheduler", "DDIM")),
        "order_seed": "0123456789abcdef" * 2,
    }
    return Protocol(**(plain | values))


def test_the_hash_is_known_and_stays():
    """A change of this number would make every stored test look forged."""
    assert protocol().digest == ("1283d2a6af3b43d75c63131a22771c5e6037ef4cec7c748d042365dbf95f6054")


OTHERS = {
    "name": "four bits",
    "models": (FP16, FOUR),
    "prompts": tuple(f"prompt {i}" for i in range(21)),
    "seeds": (1, 3),
    "pairs": 29,
    "mode": "abx",
    "questions": (*QUESTIONS[:3], Question(key="overall", text="Which one?")),
    "primary": "beauty",
    "margin": 0.05,
    "identical": 3,
    "obvious": 3,
    "obvious_model": replace(TWO, digest="ee"),
    "repeats": 0.2,
    "drawing": (("steps", "21"), ("scheduler", "DDIM")),
    "order_seed": "0" * 32,
}


def test_every_entry_is_in_the_hash():
    assert set(OTHERS) == {field.name for field in fields(Protocol)}
    digests = {protocol(**{key: value}).digest for key, value in OTHERS.items()}
    assert len(digests | {protocol().digest}) == len(OTHERS) + 1


def test_it_comes_back_from_json():
    first = protocol()
    read = Protocol.from_json(json.loads(json.dumps(first.to_json())), digest=first.digest)
    assert read == first


def test_a_changed_record_is_refused():
    first = protocol()
    for key, value in (("margin", 0.2), ("pairs", 29), ("order_seed", "0" * 32)):
        with pytest.raises(UserError, match="changed after it was frozen"):
            Protocol.from_json(first.to_json() | {key: value}, digest=first.digest)


@pytest.mark.parametrize(
    "damage",
    [{"models": [1]}, {"prompts": None}, {"questions": [{"kee": 1}]}, {"drawing": [1]},
     {"obvious_model": "x"}, {"pairs": "many"}, {"margin": None}],
)  # fmt: skip
def test_a_damaged_record_is_refused(damage):
    with pytest.raises(UserError, match="damaged"):
        Protocol.from_json(protocol().to_json() | damage)
    with pytest.raises(UserError, match="version 9"):
        Protocol.from_json(protocol().to_json() | {"version": 9})


@pytest.mark.parametrize(
    ("values", "entry"),
    [
        ({"mode": "guess"}, "mode"), ({"name": " "}, "name"), ({"models": (FP16,)}, "models"),
        ({"models": (FP16, FP16)}, "models"),
        ({"models": (FP16, replace(TWO, digest="x"))}, "models"),
        ({"models": (FP16, Entrant(name="x", digest=""))}, "models"),
        ({"models": (FP16, THREE, FOUR), "mode": "abx"}, "models"),
        ({"mode": "staircase"}, "models"), ({"prompts": ()}, "prompts"),
        ({"prompts": ("a", " ")}, "prompts"), ({"prompts": ("a",) * 40}, "prompts"),
        ({"seeds": (1, 1)}, "seeds"), ({"seeds": ()}, "seeds"), ({"pairs": 0}, "pairs"),
        ({"pairs": 41}, "pairs"), ({"questions": ()}, "questions"),
        ({"primary": "speed"}, "primary"), ({"margin": 0.5}, "margin"),
        ({"margin": float("nan")}, "margin"), ({"identical": -1}, "identical"),
        ({"obvious_model": None}, "obvious"), ({"repeats": 1.5}, "repeats"),
        ({"order_seed": "7"}, "order_seed"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_test_is_refused(values, entry):
    with pytest.raises(UserError) as caught:
        protocol(**values)
    assert caught.value.where == f"protocol.{entry}"
    assert caught.value.remedy


def test_the_obvious_model_may_take_part():
    assert protocol(models=(FP16, TWO)).comparisons == ((0, 1),)


def test_every_test_draws_its_own_seed():
    plain = {"models": (FP16, THREE), "prompts": ("a",), "seeds": (1,), "pairs": 1, "name": "t"}
    first, second = Protocol(**plain), Protocol(**plain)
    assert first.order_seed != second.order_seed
    assert first.digest != second.digest


def test_cells_use_every_prompt_before_the_next_seed():
    cells = [protocol().cell(number) for number in range(40)]
    assert [seed for _, seed in cells] == [1] * 20 + [2] * 20
    assert len({prompt for prompt, _ in cells[:20]}) == 20
    assert len(set(cells)) == 40


def test_what_is_asked():
    assert [q.key for q in protocol().asked] == ["match", "defects", "beauty", "overall"]
    assert protocol().choices == CHOICES == ("a", "equal", "b", "both bad", "skip")
    abx = protocol(mode="abx")
    assert [q.key for q in abx.asked] == ["abx"]
    assert abx.choices == ABX_CHOICES
    assert protocol(models=(FP16, THREE, FOUR)).comparisons == ((0, 1), (0, 2), (1, 2))
