"""Calibration: exact moments when all is sampled, shared inputs, waves, weights and the folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.models import tiny
from vqdq.calibration import CalibrationParams
from vqdq.capture.moments import Moments
from vqdq.codecs.base import InputStats
from vqdq.errors import Cancelled, UserError
from vqdq.layers.matrix import input_matrix, kind_of
from vqdq.models import gathering
from vqdq.models.calibration import (
    InputGroup,
    calibrate_folder,
    collect,
    input_groups,
    open_calibration,
    plan_waves,
    waves_in_words,
)
from vqdq.models.calibration_folder import input_ranges
from vqdq.models.input_groups import watching
from vqdq.models.pipelines import source_component
from vqdq.models.sources import locate
from vqdq.models.teacher import Teacher
from vqdq.models.trajectory import Trajectories, record, replay
from vqdq.progress import Event, silent

PROMPTS = ("a red circle", "a blue square", "a red square above a blue circle")
PARAMS = CalibrationParams(prompts=3, steps=3, guidance=3.0, tokens_per_channel=4.0)
ALL = dataclasses.replace(PARAMS, tokens_per_channel=1000.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("calibration") / "tiny", dtype=torch.float32)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Trajectories]:
    pipe = tiny.pipeline(tmp_path_factory.mktemp("traced"))
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.eval()
    return pipe.unet, record(pipe, PROMPTS, steps=3, guidance=3.0, batch_size=2)


def names(module: nn.Module) -> list[str]:
    return [name for name, layer in module.named_modules() if kind_of(layer) is not None]


def exact_inputs(
    module: nn.Module, trajectories: Trajectories, wanted: Iterable[str]
) -> dict[str, torch.Tensor]:
    """Returns every row that each layer is given, by plain unfolding."""
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in wanted}

    def see(name: str, layer: nn.Module, inputs: torch.Tensor) -> None:
        rows[name].append(input_matrix(layer, inputs).double())

    with watching(module, rows, see), torch.no_grad():
        for call in trajectories.calls:
            replay(module, call)
    return {name: torch.cat(parts) for name, parts in rows.items()}


def test_everything_sampled_is_exact(traced: tuple[nn.Module, Trajectories]) -> None:
    module, trajectories = traced
    everything = names(module)
    stats = collect(module, trajectories, everything, ALL)
    assert set(stats) == set(everything)
    for name, rows in exact_inputs(module, trajectories, everything).items():
        found = stats[name]
        assert found.hessian is not None
        assert found.mean is not None
        if not name.endswith(("attn2.to_k", "attn2.to_v")):  # the text comes once for all steps
            assert found.num_samples == len(rows), name
        exact = rows.T @ rows / len(rows)
        scale = float(exact.diagonal().mean())
        assert float((found.hessian - exact).abs().max()) < 1e-5 * scale, name
        assert float((found.mean - rows.mean(dim=0)).abs().max()) < 1e-5 * scale**0.5, name


def test_groups_are_layers_with_the_same_input(traced: tuple[nn.Module, Trajectories]) -> None:
    module, trajectories = traced
    groups = input_groups(module, trajectories.calls)
    by_layer = {name: group for group in groups for name in group.layers}
    assert sorted(by_layer) == sorted(names(module))
    text = {name for name in by_layer if name.endswith(("attn2.to_k", "attn2.to_v"))}
    shared = by_layer[next(iter(text))]
    assert set(shared.layers) == text
    assert shared.argument == "encoder_hidden_states"
    block = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
    assert by_layer[f"{block}.to_q"].layers == tuple(f"{block}.to_{part}" for part in "qkv")
    assert by_layer["conv_in"].layers == ("conv_in",)
    # A 3 x 3 convolution and a 1 x 1 shortcut never cut the same patches.
    resnet = "up_blocks.0.resnets.0"
    assert by_layer[f"{resnet}.conv1"] is not by_layer[f"{resnet}.conv_shortcut"]
    # One Hessian, the same tensor, for a whole group.
    stats = collect(module, trajectories, shared.layers[:2], PARAMS)
    assert stats[shared.layers[0]].hessian is stats[shared.layers[1]].hessian
    assert set(stats) == set(shared.layers[:2])


class Odd(nn.Module):
    """A layer that runs twice, one that runs in place of nothing, one never, a grouped one."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(4, 4)
        self.first = nn.Linear(4, 4)
        self.changed = nn.Linear(4, 4)
        self.never = nn.Linear(4, 4)
        self.grouped = nn.Conv2d(4, 4, 1, groups=2)
        self.small = nn.Conv2d(4, 4, 1)
        self.same = nn.Conv2d(4, 4, 1)
        self.strided = nn.Conv2d(4, 4, 1, stride=2)

    def forward(self, sample: torch.Tensor, timestep: float) -> tuple[torch.Tensor]:
        del timestep
        picture = sample.permute(0, 3, 1, 2).contiguous()
        edge = self.small(picture) + self.same(picture) + self.grouped(picture)
        x = sample + 0.1 * edge.permute(0, 2, 3, 1) + self.strided(picture).mean()
        y = self.first(x)
        x += 1.0
        z = self.changed(x)  # the same object, but other values
        return (self.twice(self.twice(y)) + z,)


def odd_calls(module: nn.Module, *, halves: bool = True) -> Trajectories:
    from vqdq.models.trajectory import Call

    calls: list[Call] = []
    generator = torch.Generator().manual_seed(0)
    for step in range(4):
        sample = torch.randn(4, 3, 2, 4, generator=generator)
        with torch.no_grad():
            output = module(sample.clone(), 0.0)[0]
        calls.append(
            Call(
                step=step,
                timestep=0.0,
                prompts=(0, 1) if halves else (0, 1, 2, 3),
                args=(sample, 0.0),
                kwargs={},
                output=output,
            )
        )
    return Trajectories(
        prompts=("",) * (2 if halves else 4),
        steps=4,
        guidance=2.0,
        calls=tuple(calls),
        latents=torch.zeros(2, 1),
    )


def test_changed_used_again_and_grouped_inputs() -> None:
    torch.manual_seed(0)
    module = Odd()
    trajectories = odd_calls(module)
    groups = {group.name: group for group in input_groups(module, trajectories.calls)}
    assert set(groups) == {"small", "strided", "first", "changed", "twice"}
    assert groups["small"].layers == ("small", "same")
    assert groups["twice"].uses == 2
    stats = collect(module, trajectories, names(module), ALL)
    assert set(stats) == {"small", "same", "strided", "first", "changed", "twice"}
    assert stats["twice"].num_samples == 2 * stats["first"].num_samples
    first, changed = stats["first"].mean, stats["changed"].mean
    assert first is not None
    assert changed is not None
    torch.testing.assert_close(changed, first + 1)


@pytest.mark.parametrize("halves", [True, False])
def test_rows_are_enough_and_halves_equal(halves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[tuple[int, torch.Tensor]] = []
    original = gathering.halves_index

    def watched(total: int, count: int, parts: int, generator: torch.Generator) -> torch.Tensor:
        index = original(total, count, parts, generator)
        taken.append((total, index))
        return index

    monkeypatch.setattr(gathering, "halves_index", watched)
    module = Odd()
    stats = collect(module, odd_calls(module, halves=halves), ["first"], PARAMS)
    found = stats["first"]
    assert 4 * PARAMS.tokens_per_channel <= found.num_samples < 4 * PARAMS.tokens_per_channel + 8
    assert len(taken) == 4  # every step
    for total, index in taken:
        low = int((index < total // 2).sum())
        assert abs(2 * low - len(index)) <= (0 if halves else 2)


def test_results_do_not_depend_on_waves(traced: tuple[nn.Module, Trajectories]) -> None:
    module, trajectories = traced
    groups = input_groups(module, trajectories.calls)
    whole = collect(module, trajectories, names(module), PARAMS)
    waves = plan_waves(groups, 2 * max(group.bytes for group in groups))
    assert len(waves) > 2
    assert [group for wave in waves for group in wave.groups] == list(groups)
    for wave in waves:
        assert wave.bytes <= 2 * max(group.bytes for group in groups)
        for name, found in collect(module, trajectories, wave.layers, PARAMS).items():
            assert torch.equal(found.hessian, whole[name].hessian)  # type: ignore[arg-type]
            assert found.num_samples == whole[name].num_samples
    shuffled = dataclasses.replace(trajectories, calls=trajectories.calls[::-1])
    again = collect(module, shuffled, ["conv_in"], PARAMS)["conv_in"]
    torch.testing.assert_close(again.hessian, whole["conv_in"].hessian, rtol=1e-5, atol=1e-6)
    other = collect(module, trajectories, ["conv_out"], dataclasses.replace(PARAMS, seed=1))
    assert not torch.equal(other["conv_out"].hessian, whole["conv_out"].hessian)  # type: ignore[arg-type]


def test_waves_say_what_they_need() -> None:
    group = InputGroup(layers=("wide",), kind="linear", in_features=10_000)
    assert group.bytes == Moments.bytes(10_000) == 4 * 10_000 * 10_512
    waves = plan_waves([group, group, group], 1_000_000_000)
    assert [len(wave.groups) for wave in waves] == [2, 1]
    assert waves_in_words(waves) == "2 passes, at most 841 MB of statistics"
    assert waves_in_words(()) == "0 passes, at most 0 B of statistics"
    with pytest.raises(UserError, match=r"wide.*10,000 inputs take 0\.42 GB.*0\.43 GB") as caught:
        plan_waves([group], 400_000_000)
    assert caught.value.where == "wide"


def test_step_weights_count(traced: tuple[nn.Module, Trajectories]) -> None:
    module, trajectories = traced
    name = "conv_out"
    weights = (0.5, 2.0, 0.5)
    found = collect(module, trajectories, [name], ALL, weights=weights)[name]
    alone = [
        collect(
            module,
            dataclasses.replace(
                trajectories, calls=tuple(call for call in trajectories.calls if call.step == step)
            ),
            [name],
            ALL,
        )[name].hessian
        for step in range(3)
    ]
    mixed = sum(weight * part for weight, part in zip(weights, alone, strict=True)) / 3  # type: ignore[operator]
    torch.testing.assert_close(found.hessian, mixed, rtol=1e-5, atol=1e-6)


def test_inputs_that_overflow_are_named() -> None:
    module = Odd()
    trajectories = odd_calls(module)
    module.first.weight.data.fill_(float("inf"))
    with pytest.raises(UserError, match="NaN or infinite") as caught:
        collect(module, trajectories, names(module), PARAMS)
    assert caught.value.where == "twice"


def test_cancelled_calibration_leaves_no_hooks(traced: tuple[nn.Module, Trajectories]) -> None:
    module, trajectories = traced
    events: list[Event] = []

    def stop(event: Event, /) -> None:
        events.append(event)
        if event.done == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        collect(module, trajectories, names(module), PARAMS, report=stop)
    assert [(event.stage, event.done, event.total) for event in events] == [
        ("calibrate", done, len(trajectories.calls)) for done in range(3)
    ]
    assert not any(layer._forward_pre_hooks for layer in module.modules())


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def same(left: Mapping[str, InputStats], right: Mapping[str, InputStats]) -> None:
    assert set(left) == set(right)
    for name in left:
        assert torch.equal(left[name].hessian, right[name].hessian)  # type: ignore[arg-type]
        assert torch.equal(left[name].mean, right[name].mean)  # type: ignore[arg-type]
        assert left[name].num_samples == right[name].num_samples


def test_folder_is_what_collect_finds(model: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    result = calibrate_folder(model, PARAMS, tmp_path / "stats", report=events.append)
    assert {event.stage for event in events} == {"load", "record", "calibrate"}
    assert result.passes == 1
    assert result.layers == len(open_calibration(tmp_path / "stats"))
    assert result.bytes == sum(len(data) for data in content(tmp_path / "stats").values())
    assert not (tmp_path / "stats.partial").exists()
    teacher = Teacher(model)
    pipe = teacher.pipeline(silent)
    trajectories = teacher.calibration_calls(PARAMS, silent)
    stats = collect(pipe.unet, trajectories, names(pipe.unet), PARAMS)  # type: ignore[attr-defined]
    component = source_component(locate(model))
    found = open_calibration(tmp_path / "stats", component)
    same(found, stats)
    assert found["conv_in"].damping == PARAMS.damping
    assert result.tokens == sum(
        {id(one.hessian): one.num_samples for one in stats.values()}.values()
    )
    rows = exact_inputs(pipe.unet, trajectories, ["mid_block.attentions.0.proj_in"])  # type: ignore[attr-defined]
    ranges = input_ranges(tmp_path / "stats", "mid_block.attentions.0.proj_in")
    exact = rows["mid_block.attentions.0.proj_in"].float()
    assert torch.equal(ranges["low"], exact.amin(dim=0))
    assert torch.equal(ranges["high"], exact.amax(dim=0))
    with pytest.raises(UserError, match="statistics"):
        input_ranges(tmp_path / "stats", "nowhere")


def test_interrupted_folder_goes_on_to_the_same_bytes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = dataclasses.replace(PARAMS, memory_gb=0.05)
    whole = tmp_path / "whole"
    calibrate_folder(model, small, whole)
    # Every input is said to take an eighth of the memory, so a pass collects eight.
    monkeypatch.setattr(Moments, "bytes", staticmethod(lambda _columns: 6_250_000))
    target = tmp_path / "stats"

    def stop(event: Event, /) -> None:
        if event.message.startswith("pass 3"):
            raise Cancelled

    with pytest.raises(Cancelled):
        calibrate_folder(model, small, target, report=stop)
    kept = sorted((tmp_path / "stats.partial" / "groups").iterdir())
    half = kept[0].with_name(f".{kept[0].name}.1-1.tmp")  # of a killed process
    half.write_bytes(b"half")
    assert len(kept) == 16
    kept[3].write_bytes(b"damaged")
    events: list[Event] = []
    result = calibrate_folder(model, small, target, report=events.append)
    assert result.passes == -(-(result.groups - 15) // 8)
    counted = [event for event in events if event.stage == "calibrate"]
    assert {event.total for event in counted} == {result.passes * 3}  # 3 calls of 3 prompts
    assert [event.done for event in counted] == sorted(event.done for event in counted)
    assert counted[-1].done == counted[-1].total
    assert content(target) == content(whole)
    with pytest.raises(UserError, match="already exists"):
        calibrate_folder(model, small, target)


def test_folder_of_other_work_or_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    def stop(event: Event, /) -> None:
        if event.stage == "calibrate":
            raise Cancelled

    with pytest.raises(Cancelled):
        calibrate_folder(model, PARAMS, tmp_path / "stats", report=stop)
    with pytest.raises(UserError, match="another settings"):
        calibrate_folder(model, ALL, tmp_path / "stats")
    calibrate_folder(model, PARAMS, tmp_path / "stats")
    component = source_component(locate(model))
    fewer = dataclasses.replace(component, layers=component.layers[1:])
    with pytest.raises(UserError, match="no such layer"):
        open_calibration(tmp_path / "stats", fewer)
    with pytest.raises(UserError, match="does not exist"):
        open_calibration(tmp_path / "nothing")
    index = tmp_path / "stats" / "calibration.json"
    index.write_text(json.dumps({"version": 1}))
    with pytest.raises(UserError, match="is not a calibration"):
        open_calibration(tmp_path / "stats")
    shutil.rmtree(tmp_path / "stats")
