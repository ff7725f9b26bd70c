"""Compression with quantized inputs, end to end: the same on the disk and in memory, and again."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn

from tests.models import tiny
from tests.models.test_compressor import WEIGHTS, content
from vqdq import activations
from vqdq.calibration import CalibrationParams, FinetuneParams, RangeParams
from vqdq.errors import Cancelled, UserError
from vqdq.layers.quantized import QuantizedLayer
from vqdq.layers.surgery import set_activations_
from vqdq.models.budget import Target, targeted
from vqdq.models.compressor import CompressionResult, compress, compress_folder
from vqdq.models.pipelines import component, load
from vqdq.models.sensitivity import measure
from vqdq.models.teacher import Teacher
from vqdq.models.trajectory import Call, record, replay
from vqdq.progress import Event, silent
from vqdq.recipe import Recipe, resolve

WEIGHTS_ONLY = {"method": "uniform", "params": {"bits": 4, "clip": "absmax"}}
MINMAX = {"method": "minmax", "params": {"bits": 8, "levels": 3}}
RECIPE = replace(
    Recipe.from_json(
        {
            "name": "tiny-activations",
            "rules": [
                {"pattern": "conv_*", "method": None},
                {"pattern": "*.attn2.*", **WEIGHTS_ONLY, "activation": {"method": "dynamic"}},
                {"pattern": "*", **WEIGHTS_ONLY, "activation": MINMAX},
            ],
        }
    ),
    ranges=RangeParams(prompts=4, steps=3, guidance=2.0),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("activations") / "tiny")


@pytest.fixture(scope="module")
def result(model: Path) -> CompressionResult:
    return compress_folder(model, RECIPE, model.parent / "whole")


def test_disk_and_memory_are_equal_bit_for_bit(model: Path, result: CompressionResult) -> None:
    assert result.measured_bytes == result.predicted_bytes
    small = compress(load(model), RECIPE)
    stored = load_file(result.output / WEIGHTS)
    state = small.unet.state_dict()
    assert set(state) == set(stored)
    for key, tensor in state.items():
        assert torch.equal(tensor.to(stored[key].dtype), stored[key]), key
    assert torch.equal(tiny.draw(small), tiny.draw(load(result.output)))


def test_the_folder_says_how_inputs_are_quantized(result: CompressionResult) -> None:
    rows = json.loads((result.output / "vqdq.json").read_text())["layers"]
    stored = load_file(result.output / WEIGHTS)
    for row, layer in zip(rows, result.layers, strict=True):
        kept, cross = row["name"].startswith("conv_"), ".attn2." in row["name"]
        method = None if kept else "dynamic" if cross else "minmax"
        assert row["activation"] == layer.activation == method
        assert row["activation_bits"] == (None if kept else 8)
        mine = [t for key, t in stored.items() if key.startswith(f"{row['name']}.input_")]
        assert row["input_bytes"] == sum(tensor.nbytes for tensor in mine)
        assert row["input_bytes"] == (3 * 3 * 4 if method == "minmax" else 0)
    counts = Counter(row["activation"] for row in rows)
    said = (result.output / "README.md").read_text()
    assert f"minmax, 8 bits ({counts['minmax']} layers)" in said
    assert f"dynamic, 8 bits ({counts['dynamic']} layers)" in said
    assert f"the inputs of the other {counts[None]} as they come" in said


def outputs(module: nn.Module, calls: Sequence[Call]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [replay(module, call) for call in calls]


@pytest.fixture(scope="module")
def calls(model: Path) -> Sequence[Call]:
    """Calls the calibration has not seen."""
    return record(load(model), ["a blue square"], steps=4, guidance=2.0, seed=5).calls


def test_the_stored_ranges_are_those_of_the_compressed_model(
    model: Path, result: CompressionResult
) -> None:
    """Against plain forward hooks on the folder itself, activations off."""
    opened = load(result.output)
    set_activations_(opened.unet, enabled=False)
    seen: dict[float, list[torch.Tensor]] = {}
    layer = opened.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.ff.net.2")
    teacher = Teacher(model, ranges=RECIPE.ranges)
    made = teacher.range_calls(silent)
    for call in made.calls:
        handle = layer.register_forward_hook(
            lambda _m, args, _o, at=call.timestep: seen.setdefault(at, []).append(args[0])
        )
        outputs(opened.unet, [call])
        handle.remove()
    times = sorted(seen, reverse=True)
    assert len(times) == 3
    assert layer.get_buffer("input_timesteps").tolist() == times
    for at, time in enumerate(times):
        whole = torch.cat(seen[time])
        assert layer.get_buffer("input_low")[at] == whole.min()
        assert layer.get_buffer("input_high")[at] == whole.max()


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    model: Path, result: CompressionResult, tmp_path: Path
) -> None:
    def stop(event: Event, /) -> None:
        if event.stage == "ranges" and event.done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        compress_folder(model, RECIPE, tmp_path / "out", report=stop)
    stages: list[str] = []
    with pytest.raises(Cancelled):
        compress_folder(
            model, RECIPE, tmp_path / "out", report=lambda event: stop_at_save(stages, event)
        )
    assert "ranges" in stages
    stages.clear()
    again = compress_folder(
        model, RECIPE, tmp_path / "out", report=lambda event: stages.append(event.stage)
    )
    assert not {"ranges", "record"} & set(stages)  # calibrated inputs were kept
    assert content(again.output) == content(result.output)
    with pytest.raises(Cancelled):
        compress_folder(model, RECIPE, tmp_path / "other", report=stop)
    other = replace(RECIPE, ranges=RangeParams(prompts=5))
    with pytest.raises(UserError, match="another recipe"):
        compress_folder(model, other, tmp_path / "other")


def stop_at_save(stages: list[str], event: Event) -> None:
    stages.append(event.stage)
    if event.stage == "save":
        raise Cancelled


def test_saved_and_opened_again_and_again(
    result: CompressionResult, calls: Sequence[Call], tmp_path: Path
) -> None:
    opened = load(result.output)
    opened.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    one, two = opened.unet.state_dict(), again.unet.state_dict()
    assert set(one) == set(two)
    assert all(torch.equal(one[key], two[key]) and one[key].dtype == two[key].dtype for key in one)
    stored = load_file(tmp_path / "again" / WEIGHTS)
    first = load_file(result.output / WEIGHTS)
    assert all(torch.equal(stored[key], first[key]) for key in first)
    pairs = zip(outputs(opened.unet, calls), outputs(again.unet, calls), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)


def test_switched_off_it_is_the_model_with_packed_weights_alone(
    model: Path, result: CompressionResult, calls: Sequence[Call]
) -> None:
    rules = tuple(replace(rule, activation=None, activation_params=None) for rule in RECIPE.rules)
    plain = compress(load(model), replace(RECIPE, rules=rules))
    opened = load(result.output)
    on = outputs(opened.unet, calls)
    set_activations_(opened.unet, enabled=False)
    off = outputs(opened.unet, calls)
    for mine, bare, rounded in zip(off, outputs(plain.unet, calls), on, strict=True):
        assert torch.equal(mine, bare)
        assert not torch.equal(rounded, bare)
    set_activations_(opened.unet, enabled=True)
    assert all(torch.equal(a, b) for a, b in zip(outputs(opened.unet, calls), on, strict=True))


def test_a_copy_follows_its_own_noise_level(
    result: CompressionResult, calls: Sequence[Call]
) -> None:
    opened = load(result.output)
    expected = outputs(opened.unet, calls)
    twin = copy.deepcopy(opened.unet)
    kept = {id(layer.input.level) for layer in inputs_of(opened.unet)}
    levels = {id(layer.input.level) for layer in inputs_of(twin)}
    assert len(levels) == len(kept)  # one for all, and one for each text that is kept
    assert not levels & kept
    outputs(opened.unet, [calls[0]])  # the original's level must not leak into the copy
    found = outputs(twin, [calls[-1], *calls])
    assert torch.equal(found[0], expected[-1])
    assert all(torch.equal(a, b) for a, b in zip(found[1:], expected, strict=True))


def inputs_of(module: nn.Module) -> list[Any]:
    layers = (layer for layer in module.modules() if isinstance(layer, QuantizedLayer))
    return [layer for layer in layers if layer.input is not None]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_no_cast_touches_the_parameters(result: CompressionResult, dtype: torch.dtype) -> None:
    stored = load_file(result.output / WEIGHTS)
    mine = [key for key in stored if ".input_" in key]
    assert len(mine) > 60
    opened = load(result.output).unet
    for unet in (nn.Module.to(opened, dtype), reopened(result.output, dtype)):
        state = unet.state_dict()
        assert unet.conv_in.weight.dtype == dtype
        assert all(state[key].dtype == torch.float32 for key in mine)
        assert all(torch.equal(state[key], stored[key]) for key in mine)


def reopened(folder: Path, dtype: torch.dtype) -> Any:
    return UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=dtype)


def outputs_of(unet: Any) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return unet(torch.randn(1, 4, 8, 8), 500, torch.randn(1, 16, 32)).sample


def test_a_dense_model_is_left_without_hooks(result: CompressionResult) -> None:
    opened = load(result.output)
    assert len(opened.unet._forward_pre_hooks) == 1
    twin = copy.deepcopy(opened.unet)
    twin.dequantize()
    assert not twin._forward_pre_hooks
    assert len(opened.unet._forward_pre_hooks) == 1
    set_activations_(opened.unet, enabled=False)
    assert torch.equal(outputs_of(twin), outputs_of(opened.unet))
    assert not any(isinstance(layer, QuantizedLayer) for layer in twin.modules())


@pytest.mark.parametrize("method", [name for name in activations.names() if name != "minmax"])
def test_every_method_is_stored_exactly(
    model: Path, calls: Sequence[Call], method: str, tmp_path: Path
) -> None:
    """With calibrated weights: smoothing changes what is encoded, and its Hessian."""
    kind = activations.get(method)
    scale = {"scale": "tensor"} if "scale" in kind.settings.__dataclass_fields__ else {}
    bits = 8 if method == "fp8" else 6
    activation = {"method": method, "params": {"bits": bits, **scale}}
    rules = [{"pattern": "*attn*", **WEIGHTS_ONLY, "activation": activation}]
    recipe = replace(
        Recipe.from_json({"name": method, "rules": rules}),
        ranges=RangeParams(prompts=2, steps=2, guidance=2.0),
        calibration=CalibrationParams(prompts=2, steps=2, guidance=2.0, tokens_per_channel=2.0),
    )
    done = compress_folder(model, recipe, tmp_path / "out")
    assert done.measured_bytes == done.predicted_bytes
    small = compress(load(model), recipe)
    opened = load(done.output)
    one, two = small.unet.state_dict(), opened.unet.state_dict()
    assert all(torch.equal(one[key], two[key]) for key in two)
    exact = outputs(load(model).unet, calls)
    found = outputs(opened.unet, calls)
    pairs = zip(outputs(small.unet, calls), found, strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
    lost = sum(float((a - b).square().sum()) for a, b in zip(found, exact, strict=True))
    assert lost < 0.02 * sum(float(a.square().sum()) for a in exact)
    set_activations_(opened.unet, enabled=False)
    off = outputs(opened.unet, calls)
    weights_only = sum(float((a - b).square().sum()) for a, b in zip(off, exact, strict=True))
    assert weights_only < lost


def test_calls_of_the_calibration_are_used_again(model: Path, tmp_path: Path) -> None:
    """Recorded once, and the bytes are those of a run that records them for itself."""
    sampling = CalibrationParams(prompts=10, steps=2, guidance=2.0, tokens_per_channel=1.0)
    few = (*RECIPE.rules[:2], replace(RECIPE.rules[2], pattern="mid_block.*"))
    recipe = replace(
        RECIPE,
        rules=few,
        calibration=sampling,
        ranges=RangeParams(prompts=8, steps=2, guidance=2.0),
    )
    stages: list[str] = []
    whole = compress_folder(
        model, recipe, tmp_path / "a", report=lambda e: stages.append(f"{e.stage} {e.done}")
    )
    assert stages.count("record 0") == 1
    with pytest.raises(Cancelled):
        compress_folder(model, recipe, tmp_path / "b", report=at_ranges)
    again = compress_folder(
        model, recipe, tmp_path / "b", report=lambda e: stages.append(f"{e.stage} {e.done}")
    )
    assert stages.count("record 0") == 2  # 8 prompts of its own
    assert content(again.output) == content(whole.output)


def at_ranges(event: Event, /) -> None:
    if event.stage == "ranges":
        raise Cancelled


def tuned(method: str, bits: int) -> Recipe:
    activation = {"method": method, "params": {"bits": bits}}
    rules = [
        {"pattern": "*attn*", **WEIGHTS_ONLY, "activation": activation},
        {"pattern": "*", "method": None},
    ]
    return replace(
        Recipe.from_json({"rules": rules}),
        ranges=RangeParams(prompts=2, steps=2, guidance=2.0),
        calibration=CalibrationParams(prompts=2, steps=2, guidance=2.0, tokens_per_channel=1.0),
        finetune=FinetuneParams(steps=3, prompts=8, batch_size=2, precision="float32"),
    )


def test_fine_tuning_does_not_see_rounded_inputs(model: Path, tmp_path: Path) -> None:
    fine, coarse = (
        compress_folder(model, tuned("minmax", bits), tmp_path / f"{bits}") for bits in (8, 4)
    )
    assert fine.learnt is not None
    assert fine.learnt == coarse.learnt
    assert fine.learnt.after_db >= fine.learnt.before_db
    one, two = (load_file(made.output / WEIGHTS) for made in (fine, coarse))
    assert all(torch.equal(one[key], two[key]) for key in one)  # the ranges are of the tuned model


def test_fine_tuning_of_smoothed_weights(model: Path, tmp_path: Path) -> None:
    made = compress_folder(model, tuned("smooth", 8), tmp_path / "tuned")
    assert made.learnt is not None
    assert made.learnt.before_db > 15  # the teacher is met through the factors
    mine, theirs = load(made.output).unet, compress(load(model), tuned("smooth", 8)).unet
    assert torch.equal(outputs_of(mine), outputs_of(theirs))


def test_bits_for_each_layer_leave_its_input_as_planned(model: Path, tmp_path: Path) -> None:
    """A target of bits allocates weights; what is stored for inputs is counted all the same."""
    few = replace(RECIPE, rules=(replace(RECIPE.rules[2], pattern="mid_block.*"),))
    pipe = load(model)
    made = measure(
        pipe.unet, record(pipe, ["a circle"], steps=2, guidance=2.0), names_of(few, pipe)
    )
    target = Target(kind="average_bits", value=5.0)
    found = targeted(pipe, few, target, sensitivity=made)
    planned = {item.layer.name: item for item in resolve(few, found.plan.component).layers}
    assert len({item.params for item in found.plan.quantized}) > 1
    for item in found.plan.quantized:
        assert item.activation == planned[item.layer.name].activation
    written = compress_folder(model, found.recipe, tmp_path / "out")
    assert written.measured_bytes == found.predicted_bytes


def names_of(recipe: Recipe, pipe: Any) -> list[str]:
    return [item.layer.name for item in resolve(recipe, component(pipe)).quantized]
