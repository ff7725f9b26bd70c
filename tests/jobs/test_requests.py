"""Requests refuse what cannot be done, and survive the way through JSON."""

from __future__ import annotations

import json

import pytest

from tests.jobs.conftest import draw, toy
from vqdq.errors import UserError
from vqdq.jobs.requests import CompareRequest, InspectRequest, request_from_json

EXAMPLES = (
    toy(),
    draw(seed=2**63 - 1, guidance=0.0),
    CompareRequest(model="demo", variants=("a", "b"), prompt="ein Kreis 🎈", steps=1),
    InspectRequest(model="demo", prompt="x", layer="conv_in", step=19),
)


@pytest.mark.parametrize("request_", EXAMPLES, ids=lambda r: r.kind)
def test_json_round_trip(request_):
    assert request_from_json(json.loads(json.dumps(request_.to_json()))) == request_


@pytest.mark.parametrize(
    ("values", "where", "what"),
    [
        ({"prompt": ""}, "prompt", "is empty"),
        ({"prompt": " \n"}, "prompt", "is empty"),
        ({"prompt": "a" * 10_000}, "prompt", "10,000 characters"),
        ({"prompt": "a\0b"}, "prompt", "no text"),
        ({"prompt": "half \ud83c"}, "prompt", "no text"),
        ({"prompt": 7}, "prompt", "is empty"),
        ({"seed": -1}, "seed", "-1 is out of range"),
        ({"seed": 2**64}, "seed", "out of range"),
        ({"seed": 1.5}, "seed", "not a whole number"),
        ({"seed": True}, "seed", "not a whole number"),
        ({"steps": 0}, "steps", "out of range"),
        ({"steps": 1001}, "steps", "out of range"),
        ({"guidance": float("nan")}, "guidance", "out of range"),
        ({"guidance": -1.0}, "guidance", "out of range"),
        ({"guidance": "3"}, "guidance", "out of range"),
        ({"model": " "}, "model", "no model"),
    ],
)
def test_bad_values_name_place_and_remedy(values, where, what):
    with pytest.raises(UserError, match=what) as caught:
        draw(**values)
    assert caught.value.where == where
    assert caught.value.remedy


def test_emoji_is_text():
    assert draw(prompt="a red 🔴 circle").prompt == "a red 🔴 circle"


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a" * 65, ".hidden", "x.partial", "ä"])
def test_names_that_are_no_folder(name):
    with pytest.raises(UserError) as caught:
        toy(name=name)
    assert caught.value.where == "name"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"kind": "compres"}, "unknown kind"),
        ({"sede": 1}, 'unknown key "sede"'),
        ({"prompt": None}, "prompt is empty"),
    ],
)
def test_json_faults(change, what):
    with pytest.raises(UserError, match=what):
        request_from_json(draw().to_json() | change)


def test_missing_field_and_nearest_key():
    values = draw().to_json()
    del values["prompt"]
    with pytest.raises(UserError, match="prompt"):
        request_from_json(values)
    with pytest.raises(UserError) as caught:
        request_from_json(draw().to_json() | {"sede": 1})
    assert "seed" in caught.value.remedy


@pytest.mark.parametrize("variants", [(), tuple("abcdefghi")])
def test_how_many_variants(variants):
    with pytest.raises(UserError, match="models were chosen"):
        CompareRequest(model="demo", variants=variants, prompt="x")


def test_step_must_exist():
    with pytest.raises(UserError, match="20 is out of range"):
        InspectRequest(model="demo", prompt="x", layer="conv_in", step=20)
