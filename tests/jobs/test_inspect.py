"""An inspection of a tiny model: what it writes, what the numbers are, and what it refuses."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from tests.models import tiny
from vqdq import capture
from vqdq.capture import archive
from vqdq.capture.weights import WeightRecords
from vqdq.errors import Cancelled, UserError
from vqdq.jobs import compress, inspect
from vqdq.jobs.inspected import opened
from vqdq.jobs.requests import CompressRequest, InspectRequest
from vqdq.jobs.warm import WarmPipelines
from vqdq.layers.matrix import to_matrix
from vqdq.models import pipelines
from vqdq.models.following import Following
from vqdq.models.trajectory import draw
from vqdq.progress import Event
from vqdq.recipe import Recipe

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2.to_q"
CONV = "up_blocks.0.resnets.0.conv1"
RECIPE = {
    "name": "coarse",
    "rules": [
        {"pattern": "mid_block.*", "method": "uniform", "params": {"bits": 3}},
        {
            "pattern": CONV,
            "method": "trellis",
            "params": {"bits": 2},
            "activation": {"method": "dynamic"},
        },
    ],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect")
    tiny.folder(folder / "tiny")
    compress.execute(
        CompressRequest(
            model=str(folder / "tiny"),
            recipe=Recipe.from_json(RECIPE),
            name="small",
            output=str(folder / "small"),
        )
    )
    return folder


@pytest.fixture(scope="module")
def cache():
    return WarmPipelines()


@pytest.fixture(scope="module")
def done(place, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    events: list[Event] = []
    result = inspect.execute(asked(place), folder, report=events.append, cache=cache)
    (folder / "result.json").write_text(json.dumps(result, allow_nan=False))
    return folder, result, events


def asked(place, **values):
    base = {
        "model": str(place / "tiny"), "variants": (str(place / "small"),), "steps": 3, "seed": 5,
        "prompt": "a red circle", "layer": "mid*attn2.to_[qk]", "step": 1,
    }  # fmt: skip
    return InspectRequest(**(base | values))


def test_every_record_is_written_and_opens_again(done):
    folder, result, events = done
    parts = (result["reference"], *result["variants"])
    named = {part[key] for part in parts for key in FILES if part[key]}
    assert named | {"result.json"} == {path.name for path in folder.iterdir()}
    assert result["layers"] == [LAYER, LAYER.replace("to_q", "to_k")]
    assert (result["layer"], result["matched"], result["paired_steps"]) == (LAYER, 2, [0, 1, 2])
    assert result["reference"]["plain_seconds"] > 0
    assert list(result["stages"]) == ["load", "draw", "pair", "follow", "weights", "save"]
    stages = list(dict.fromkeys(event.stage for event in events))
    assert [stage for stage in stages if stage != "load"] == ["draw", "pair", "follow", "weights"]
    assert all(event.done <= event.total for event in events if event.stage != "load")
    models = opened(folder, json.loads((folder / "result.json").read_text()))
    assert [model.label for model in models] == ["FP16", result["variants"][0]["label"]]
    for model in models:
        assert model.activity.layer(LAYER, 0).halves == ("uncond", "cond")
        assert model.activity.layer(model.activity.layers[0], 1)  # a small model: all at this step
        assert [word.text for word in model.attention.prompt.words] == ["a", "red", "circle"]
        kept = model.activity.kept
        assert (kept.name, kept.step, kept.whole) == (LAYER, 1, True)
    codes = models[1].activity.codes[CONV, 1]
    assert codes.bits == 8
    rows = models[1].activity.layers.index(CONV)
    assert np.isfinite(models[1].activity.scalars.used[:, rows]).all()


FILES = ("image", "activations", "attention", "trajectory", "weights")


def test_layers_are_compared_on_the_same_inputs(done, place):
    """By an independent pass: outputs of both denoisers for a call of the reference."""
    folder, result, _ = done
    record = capture.ActivationRecord.load(folder / result["variants"][0]["activations"])
    assert np.isinf(record.scalars.paired_sqnr_db[:, record.layers.index("conv_in")]).all()
    mine, theirs = (pipelines.load(place / name) for name in ("tiny", "small"))
    seen: dict[str, list[torch.Tensor]] = {"mine": [], "theirs": []}
    calls: list[tuple] = []

    def keep(_module, args, kwargs):
        calls.append((args, kwargs))

    handle = mine.unet.register_forward_pre_hook(keep, with_kwargs=True)
    draw(mine, ["a red circle"], steps=3, guidance=3.0, seed=5)
    handle.remove()
    for name, pipe in (("mine", mine), ("theirs", theirs)):
        layer = pipe.unet.get_submodule(CONV)
        layer.register_forward_hook(lambda _m, _a, y, name=name: seen[name].append(y))
        with torch.no_grad():
            pipe.unet(*calls[2][0], **calls[2][1])
    y, other = (seen[name][-1].double()[1] for name in ("mine", "theirs"))
    expected = 10 * torch.log10(y.square().sum() / (y - other).square().sum())
    found = record.scalars.paired_sqnr_db[1, record.layers.index(CONV), 2]
    assert found == pytest.approx(float(expected), abs=0.01)


def test_the_way_is_that_of_the_pictures(done, place):
    folder, result, _ = done
    way = Following.load(folder / result["variants"][0]["trajectory"])
    for name, latents in zip(("tiny", "small"), way.latents, strict=True):
        end = draw(pipelines.load(place / name), ["a red circle"], steps=3, guidance=3.0, seed=5)
        np.testing.assert_allclose(latents[0, -1], end[0], atol=1e-4)
    (errors,) = way.errors
    assert errors.forced_sqnr_db[0] == pytest.approx(errors.free_sqnr_db[0], abs=1e-2)
    assert np.isfinite([errors.forced_sqnr_db, errors.free_sqnr_db]).all()
    assert way.previewed == "decoded"
    assert way.previews.shape == (2, 3, 16, 16, 3)


def test_weights_are_those_of_the_two_files(done, place):
    folder, result, _ = done
    found = WeightRecords.load(folder / result["variants"][0]["weights"]).records
    mine, theirs = (pipelines.load(place / name).unet for name in ("tiny", "small"))
    assert set(found) == {
        name for name, module in theirs.named_modules() if hasattr(module, "packed")
    }
    for name in (LAYER, CONV):
        record = found[name]
        was = to_matrix(mine.get_submodule(name).weight).double()
        now = to_matrix(theirs.get_submodule(name).dense(torch.float32)).double()
        error = 10 * torch.log10((was - now).square().sum(1) / was.square().sum(1))
        np.testing.assert_allclose(record.row_error_db, error.detach().numpy(), atol=1e-3)
        assert record.reference.sum() == record.variant.sum() == was.numel()
        assert (record.rows, record.columns) == tuple(was.shape)
    assert found[LAYER].use.sum() == found[LAYER].reference.sum()
    assert (found[LAYER].codec, found[CONV].codec) == ("uniform", "trellis")
    direct = capture.weight_record(CONV, mine.get_submodule(CONV), theirs.get_submodule(CONV))
    for field in dataclasses.fields(direct):
        ours, kept = getattr(direct, field.name), getattr(found[CONV], field.name)
        if isinstance(ours, np.ndarray):
            np.testing.assert_allclose(ours, kept, rtol=1e-6)
        else:
            assert ours == kept


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"layer": "mid_block.attentions.0.transformer_blocks.0.attn2.to_w"}, LAYER[:-1]),
        ({"layer": "attn2.to_qq*"}, "attn2.to_q"),
        ({"variants": ("other",)}, "another model"),
    ],
)
def test_refused_before_anything_is_drawn(place, cache, tmp_path, values, words):
    if "variants" in values:
        other = tiny.pipeline(tmp_path / "scratch")
        other.unet = type(other.unet)(**(dict(other.unet.config) | {"layers_per_block": 2}))
        other.save_pretrained(tmp_path / "other")
        values = {"variants": (str(tmp_path / "other"),)}
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=words):
        inspect.execute(asked(place, **values), tmp_path / "run", cache=cache)
    assert not list((tmp_path / "run").iterdir())


def test_no_layer_named_no_guidance_no_variant(place, cache, tmp_path):
    request = asked(place, variants=(), layer="", guidance=1.0, steps=1, step=0)
    result = inspect.execute(request, tmp_path, cache=cache)
    (model,) = opened(tmp_path, result)
    assert model.activity.halves == ("all",)
    assert result["layers"] == []
    assert result["layer"] in model.activity.layers
    assert model.activity.kept is None
    assert (model.errors, model.weights, result["paired_steps"]) == (None, {}, [])


def test_cancel_keeps_what_was_whole(place, cache, tmp_path):
    def stop(event: Event) -> None:
        if event.stage == "pair" and event.done == 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        inspect.execute(asked(place), tmp_path, report=stop, cache=cache)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        "reference.png", "reference-activations.npz", "reference-attention.npz", "variant-1.png",
        "variant-1-attention.npz",
    }  # fmt: skip
    for name in ("tiny", "small"):
        unet = cache.get(str(place / name)).pipeline.unet
        assert not any(module._forward_hooks for module in unet.modules())
        assert "step" not in cache.get(str(place / name)).pipeline.scheduler.__dict__


def test_an_older_capture_is_told(done, tmp_path):
    folder, result, _ = done
    name = result["variants"][0]["weights"]
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    archive.save(tmp_path / name, {"kind": "weights", "version": 0}, {})
    with pytest.raises(UserError, match="earlier form"):
        opened(tmp_path, result)
    older = {key: value for key, value in result["variants"][0].items() if "_" not in key}
    older |= {"trajectory": None, "weights": None}
    models = opened(tmp_path, {"reference": result["reference"], "variants": [older, older]})
    assert models[2].label == f"{models[1].label} (2)"
    assert models[1].previews.size == 0
    with pytest.raises(UserError, match="no result of an inspection"):
        opened(tmp_path, {})


def test_long_drawings_are_compared_at_some_steps():
    assert inspect.paired_steps(25, 3) == tuple(range(25))
    found = inspect.paired_steps(100, 41)
    assert found[0] == 0
    assert found[-1] == 99
    assert 41 in found
    assert len(found) <= inspect.MAX_PAIRED
