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
    draw(mode="streaming", offload=True, device="cuda"),
    CompareRequest(
        model="demo", variants=("a",), prompt="x", mode="hybrid", cache_bytes=7, offload=True
    ),
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
        ({"device": "gpu"}, "device", 'no device "gpu"'),
        ({"offload": True}, "offload", "nothing to bring to a card"),
        ({"offload": True, "mode": "integer"}, "offload", "nothing to bring to a card"),
        ({"offload": 1, "mode": "streaming"}, "offload", "neither true nor false"),
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


def test_where_it_runs_is_kept_only_where_it_is_not_as_usual():
    """Requests of versions that knew neither a device nor offloading are those of today."""
    values = draw(mode="streaming").to_json()
    assert not {"offload", "device", "cache_bytes"} & values.keys()
    opened = request_from_json(values)
    assert (opened.offload, opened.device, opened.setting.offload) == (False, "cpu", False)
    asked = draw(mode="streaming", offload=True, device="cuda")
    assert {
        "mode": "streaming",
        "offload": True,
        "device": "cuda",
    }.items() <= asked.to_json().items()
    assert asked.setting.offload


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
