"""Batches, the floor and the certificate, on the tiny pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models import tiny
from vqdq.errors import Cancelled, UserError
from vqdq.jobs import batch, certificate, compare, compress, distance, floor
from vqdq.jobs.requests import CompareRequest, CompressRequest, request_from_json
from vqdq.jobs.warm import WarmPipelines
from vqdq.progress import Event
from vqdq.recipe import Recipe

RECIPE = Recipe.from_json(
    {"name": "two", "rules": [{"pattern": "*", "method": "uniform", "params": {"bits": 2}}]}
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    tiny.folder(folder / "tiny")
    small = str(folder / "small")
    compress.execute(
        CompressRequest(model=str(folder / "tiny"), recipe=RECIPE, name="small", output=small)
    )
    return folder


@pytest.fixture(scope="module")
def cache():
    return WarmPipelines()


def asked(place, **values):
    fields = {"prompts": ("a", "a red circle"), "seeds": (1, 2), "steps": 2} | values
    return CompareRequest.batch(
        model=str(place / "tiny"), variants=(str(place / "small"),), **fields
    )


def test_a_batch_keeps_what_is_done_and_goes_on_to_the_same_numbers(place, cache, tmp_path):
    request = asked(place, floor=True)
    drawn: list[Event] = []

    def stop(event: Event) -> None:
        if event.preview:
            drawn.append(event)
        if event.preview and event.preview.endswith("002-1-small.png"):
            raise Cancelled

    first, whole = tmp_path / "first", tmp_path / "whole"
    first.mkdir()
    whole.mkdir()
    fresh = WarmPipelines()
    with pytest.raises(Cancelled):
        compare.execute(request, first, report=stop, cache=fresh)
    kept = batch.read(first, request)
    assert [each["reference"] is not None for each in kept] == [True] * 4
    assert [each["variants"][0] is not None for each in kept] == [True, False, False, False]
    with (first / batch.FILE).open("a") as file:
        file.write('{"set": 1, "mod')  # as a killed process leaves it
    before, drawn[:] = len(drawn), []
    events: list[Event] = []
    result = compare.execute(request, first, report=events.append, cache=fresh)
    previews = [event.preview for event in events if event.preview]
    assert [path.rsplit("/", 1)[1] for path in previews] == [
        f"00{k}-1-small.png" for k in (2, 3, 4)
    ]
    assert (events[-1].done, events[-1].total) == (2 * 13, 2 * 13)
    assert before == 4 + 2  # references, then two variants: a model is loaded once
    other = compare.execute(request, whole, cache=cache)
    assert result["sets"] == other["sets"] == 4
    again, straight = batch.read(first, request), batch.read(whole, request)
    for one, two in zip(again, straight, strict=True):
        assert (one["prompt"], one["seed"]) == (two["prompt"], two["seed"])
        for name in ("psnr", "ssim", "flip", "latent_cosine", "initial_latent_sha256"):
            assert one["variants"][0][name] == two["variants"][0][name]
    assert not list(first.glob(".*.npy"))
    assert result["certificate"]["problems"] == []
    with Image.open(first / again[2]["variants"][0]["flip_map"]) as image:
        assert image.mode == "RGB"


def test_the_floor_is_exact_again_and_small_with_rounding(place, cache, tmp_path):
    request = asked(place, prompts=("a",), seeds=(1,), floor=True)
    events: list[Event] = []
    result = compare.execute(request, tmp_path, report=events.append, cache=cache)
    found = result["floor"]
    assert found["dtype"] == "bfloat16"
    assert (found["repeat"]["psnr"], found["repeat"]["flip"]) == (None, 0)
    assert found["repeat"]["latent_cosine"] == pytest.approx(1)
    (variant,) = result["variants"]
    assert 0 < found["rounding"]["flip"] < variant["flip"]
    assert variant["psnr"] < found["rounding"]["psnr"]
    assert (events[-1].done, events[-1].total) == (8, 8)
    seen = {Path(event.preview).name for event in events if event.preview}
    assert seen == {"reference.png", "1-small.png"}  # no file that will be gone
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "1-small-error.png", "1-small-flip.png", "1-small.png", "reference.png",
    ]  # fmt: skip
    known = compare.execute(request, tmp_path, cache=cache)["floor"]
    assert known == found | {"seconds": 0.0}


def test_rounding_is_undone_after_a_fault():
    module = torch.nn.Linear(3, 2)
    before = module(torch.ones(1, 3))
    with pytest.raises(RuntimeError, match="stop"), floor.rounded(module, torch.bfloat16):
        raise RuntimeError("stop")
    assert torch.equal(module(torch.ones(1, 3)), before)
    assert "forward" not in vars(module)


def test_a_forged_result_is_noticed(place, cache, tmp_path):
    result = compare.execute(asked(place, prompts=("a",), seeds=(1,)), tmp_path, cache=cache)
    pictures = [result["reference"], *result["variants"]]
    assert certificate.mismatches(pictures) == []
    forged = json.loads(json.dumps(pictures))
    forged[1]["initial_latent_sha256"] = "0" * 64
    forged[1]["setting"] |= {"steps": 3, "dtype": "bfloat16", "scheduler_sha256": "x"}
    label = forged[1]["label"]
    assert certificate.mismatches(forged) == [
        f"{label}: the picture started from other noise.",
        f"{label}: its scheduler has other settings.",
        f"{label}: it was drawn in 3 steps, not 2.",
        f"{label}: it was computed in bfloat16, not in float32.",
    ]
    del forged[1]["setting"]  # of an older version
    assert len(certificate.mismatches(forged)) == 1


def test_magma_begins_black_and_ends_light():
    found = distance.magma(np.array([[0.0, 1.0, 0.5]]))
    assert found.tolist() == [[[0, 0, 4], [252, 253, 191], [183, 55, 121]]]


def test_what_is_no_batch():
    fields = {"model": "demo", "variants": ("a",), "steps": 1}
    one = CompareRequest.batch(prompts=("x",), seeds=(3,), **fields)
    assert one == CompareRequest(prompt="x", seed=3, **fields)
    assert "prompts" not in one.to_json()
    many = CompareRequest.batch(prompts=("x", "y"), seeds=(3, 4), floor=True, **fields)
    assert many.sets == (("x", 3), ("x", 4), ("y", 3), ("y", 4))
    assert request_from_json(json.loads(json.dumps(many.to_json()))) == many
    for prompts, seeds, where in (
        ((), (1,), "prompts"),
        (("x",), (), "seeds"),
        (("x", " "), (1,), "prompt"),
        (("x",), (1, -1), "seed"),
        (tuple(map(str, range(51))), (1,), "prompts"),
        (tuple(map(str, range(50))), (1, 2, 3), "prompts"),
    ):
        with pytest.raises(UserError) as caught:
            CompareRequest.batch(prompts=prompts, seeds=seeds, **fields)
        assert caught.value.where == where
