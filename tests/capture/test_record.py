"""Streaming statistics against direct computation, planted outliers, hooks that are gone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.capture import toy
from vqdq.capture import (
    ActivationRecord,
    Along,
    AttentionRecord,
    TrajectoryRecord,
    record,
    record_attention,
    sketch,
    streams,
    tokenize,
)
from vqdq.errors import UserError

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "down_blocks.1.resnets.0.conv1"
TIME = "down_blocks.1.resnets.0.time_emb_proj"


class _Net(nn.Module):
    """One linear and one convolution layer, called like a denoiser."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(12, 5)
        self.conv = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, sample, timestep, tokens):
        return self.conv(sample), self.linear(tokens), timestep


def _hooks(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def _batches(count: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    scale = torch.logspace(-2, 1, 12)
    return [
        (
            torch.randn(2, 6, 4, 5, generator=generator),
            torch.randn(2, 9, 12, generator=generator) * scale + 0.5,
        )
        for _ in range(count)
    ]


def _run(batches, **options) -> ActivationRecord:
    net = _Net()
    with torch.no_grad(), record(net, detail_steps=(0,), **options) as recorder:
        for sample, tokens in batches:
            net(sample, 999.0, tokens)  # equal timesteps count on; a rising one starts again
            net(sample, 1.0, tokens)
    return recorder.result()


def test_streams_equal_the_direct_computation_on_all_batches():
    batches = _batches()
    found = _run(batches).layer("linear", 0)
    x = torch.cat([tokens for _, tokens in batches]).double().numpy()  # [8, 9, 12]
    flat = x.reshape(-1, 12)
    assert found.count[0] == x.size
    np.testing.assert_allclose(found.minimum[0], flat.min(0), rtol=1e-6)
    np.testing.assert_allclose(found.maximum[0], flat.max(0), rtol=1e-6)
    np.testing.assert_allclose(found.mean[0], flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.position_absmax[0].ravel(), abs(x).max((0, 2)), rtol=1e-6)
    np.testing.assert_array_equal(found.outliers[0], (abs(flat) >= 6).sum(0))
    centred = flat - flat.mean()
    kurtosis = (centred**4).mean() / (centred**2).mean() ** 2
    assert found.kurtosis[0] == pytest.approx(kurtosis, rel=1e-5)
    edges = streams.bin_edges()
    np.testing.assert_array_equal(found.histogram[0], np.histogram(flat, edges)[0])
    assert found.median_abs[0] == pytest.approx(np.median(abs(flat)), rel=0.05)


def test_percentiles_are_within_a_bin():
    batches = _batches(40)
    found = _run(batches).layer("linear", 0)
    flat = torch.cat([tokens for _, tokens in batches]).reshape(-1, 12).numpy()
    exact = np.quantile(flat, (0.01, 0.5, 0.99), axis=0)
    spread = flat.std(0)
    estimates = np.stack([found.p01[0], found.median[0], found.p99[0]])
    # A bin is 19 % of its magnitude; close to zero the bins are finer than the spread.
    assert np.all(abs(estimates - exact) < 0.19 * abs(exact) + 0.01 * spread)
    assert np.median(abs(estimates - exact) / abs(exact)) < 0.03


def test_convolutions_are_seen_by_channel_and_place():
    batches = _batches()
    found = _run(batches).layer("conv", 0)
    x = torch.cat([sample for sample, _ in batches])
    assert found.kind == "conv"
    assert found.positions == (4, 5)
    np.testing.assert_allclose(found.absmax[0], x.abs().amax((0, 2, 3)))
    np.testing.assert_allclose(found.position_absmax[0], x.abs().amax((0, 1)))


def test_order_of_the_batches_does_not_matter():
    forward, backward = _run(_batches()), _run(_batches()[::-1])
    for name in ("linear", "conv"):
        a, b = forward.layer(name, 0), backward.layer(name, 0)
        for field in ("minimum", "maximum", "p01", "median", "p99", "outliers", "histogram"):
            np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
        np.testing.assert_allclose(a.mean, b.mean, rtol=1e-6)


def test_guidance_halves_are_apart():
    sample, tokens = _batches(1)[0]
    tokens[0] *= 100
    net = _Net()
    with torch.no_grad(), record(net, detail=("linear",), guided=True) as recorder:
        net(sample, 5.0, tokens)
    found = recorder.result().layer("linear", 0)
    assert found.halves == ("uncond", "cond")
    for half in (0, 1):
        np.testing.assert_allclose(found.absmax[half], tokens[half].abs().amax(0))
    assert found.half("uncond") == 0
    assert found.half("cond") == 1


def test_planted_outliers_are_found_where_they_are():
    sample, tokens = _batches(1)[0]
    tokens = tokens / tokens.abs().amax()
    sample = sample / sample.abs().amax()
    tokens[1, 7, 3] = -60.0
    sample[0, 4, 2, 1] = 45.0
    net = _Net()
    with torch.no_grad(), record(net, detail_steps=(0,)) as recorder:
        net(sample, 1.0, tokens)
    result = recorder.result()
    linear, conv = result.layer("linear", 0), result.layer("conv", 0)
    assert linear.absmax[0].argmax() == 3
    assert linear.minimum[0, 3] == -60
    assert linear.position_absmax[0].ravel().argmax() == 7
    assert conv.absmax[0].argmax() == 4
    assert np.unravel_index(conv.position_absmax[0].argmax(), (4, 5)) == (2, 1)
    assert linear.outliers.sum() == conv.outliers.sum() == 1
    assert result.scalars.absmax[0, result.layers.index("linear"), 0] == 60
    assert result.scalars.outliers[0, 0, 0] == pytest.approx(1 / sample.numel())


def test_values_that_are_no_numbers_are_counted_and_left_out():
    sample, tokens = _batches(1)[0]
    expected = tokens.abs().amax()
    tokens[0, 0, 0], tokens[0, 1, 0] = torch.nan, torch.inf
    net = _Net()
    with torch.no_grad(), record(net) as recorder:
        net(sample, 1.0, tokens)
    scalars = recorder.result().scalars
    row = recorder.result().layers.index("linear")
    assert scalars.nonfinite[0, row, 0] == 2
    assert scalars.absmax[0, row, 0] == pytest.approx(float(expected), rel=0.5)
    assert np.isfinite(scalars.kurtosis[0, row, 0])


def test_a_unet_is_watched_in_the_order_it_runs_and_left_as_it_was():
    model = toy.unet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    picture = toy.draw(model)
    with record(model, detail=(ATTENTION, TEXT, CONV, TIME), guided=True) as recorder:
        watched = toy.draw(model)
    assert torch.equal(picture, watched)
    assert _hooks(model) == 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    result = recorder.result()
    assert result.layers[0] == "time_embedding.linear_1"
    assert result.layers[-1] == "conv_out"
    assert result.layers.index("mid_block.resnets.0.conv1") < result.layers.index(
        "up_blocks.0.resnets.0.conv1"
    )
    assert result.timesteps == (900.0, 500.0, 100.0)
    assert np.isfinite(result.scalars.absmax).all()
    assert result.layer(ATTENTION, 2).positions == (4, 4)
    assert result.layer(TEXT, 0).positions == (toy.TOKENS,)
    assert result.layer(CONV, 1).positions == (4, 4)
    assert result.layer(TIME, 0).positions == ()


def test_hooks_leave_when_the_block_fails():
    model = toy.unet()
    with pytest.raises(TypeError), record(model):
        model(toy.inputs()["sample"])
    assert _hooks(model) == 0


def test_recording_under_inference_mode_goes_on_outside_of_it():
    model = toy.unet()
    with record(model, detail=(CONV,)) as recorder:
        with torch.inference_mode():
            toy.draw(model)
        toy.draw(model, seed=1)
    assert recorder.result().layer(CONV, 0).count[0] == 2 * 2 * 16 * 4 * 4


def test_output_sqnr_from_sketches_is_the_true_one():
    model, other = toy.unet(), toy.unet()
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name.endswith("conv1.weight"):
                parameter.add_(torch.randn(parameter.shape).mul_(0.003))
    outputs: list[list[torch.Tensor]] = [[], []]
    records = []
    for index, each in enumerate((model, other)):
        handle = each.get_submodule(CONV).register_forward_hook(
            lambda _m, _i, out, index=index: outputs[index].append(out.double())
        )
        with record(each) as recorder:
            toy.draw(each)
        records.append(recorder.result())
        handle.remove()
    sqnr = records[1].sqnr_db(records[0])
    row = records[0].layers.index(CONV)
    for step, (a, b) in enumerate(zip(*outputs, strict=True)):
        exact = 10 * torch.log10(a.square().sum() / (a - b).square().sum())
        assert sqnr[0, row, step] == pytest.approx(float(exact), abs=1.5)  # four standard errors
    assert np.isinf(records[0].sqnr_db(records[0])).all()


def test_sketch_has_the_error_it_claims():
    generator = torch.Generator().manual_seed(5)
    errors = []
    for _ in range(60):
        a = torch.randn(1, 40, 64, generator=generator)
        b = a + 0.1 * torch.randn(1, 40, 64, generator=generator)
        total, energy = np.zeros((2, 1, sketch.Sketch.WIDTH)), np.zeros((2, 1))
        for index, y in enumerate((a, b)):
            sketch.Sketch().add(y.flatten(1), sample=0, total=total[index], energy=energy[index])
        difference = total[0] - total[1]
        assert energy[0, 0] == pytest.approx(float(a.double().square().sum()))
        errors.append((difference**2).sum() / float((a - b).double().square().sum()) - 1)
    assert abs(np.mean(errors)) < 0.04
    assert np.std(errors) == pytest.approx((2 / sketch.Sketch.WIDTH) ** 0.5, rel=0.3)


def test_records_come_back_from_disk(tmp_path):
    model = toy.unet()
    with record(
        model, detail=(CONV,), guided=True, context={"prompt": "a 🐈", "seed": 7}
    ) as recorder:
        toy.draw(model)
    saved = recorder.result()
    path = tmp_path / "activations.npz"
    saved.save(path)
    loaded = ActivationRecord.load(path)
    assert loaded.context == {"prompt": "a 🐈", "seed": 7}
    assert (loaded.layers, loaded.kinds, loaded.halves) == (saved.layers, saved.kinds, saved.halves)
    assert loaded.timesteps == saved.timesteps
    np.testing.assert_array_equal(loaded.scalars.absmax, saved.scalars.absmax)
    for step in range(3):
        a, b = loaded.layer(CONV, step), saved.layer(CONV, step)
        assert a.positions == b.positions
        np.testing.assert_array_equal(a.p99, b.p99)
        np.testing.assert_array_equal(a.histogram, b.histogram)
    assert [each.name for each in tmp_path.iterdir()] == ["activations.npz"]
    with np.load(path, allow_pickle=False) as archive:  # nothing in it is an object
        assert all(archive[name].dtype != object for name in archive.files)


def _rewritten(path: Path, **changes: object) -> None:
    """Changes entries of a record's header, as another version would; None takes one out."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    header = json.loads(arrays["header"].tobytes()) | changes
    kept = {key: value for key, value in header.items() if value is not None}
    arrays["header"] = np.frombuffer(json.dumps(kept).encode(), np.uint8)
    with path.open("wb") as file:
        np.savez(file, **arrays)


def test_damaged_records_and_those_of_other_versions_are_refused(tmp_path):
    model = toy.unet()
    tokens = tokenize(toy.Tokenizer(), "red circle")
    with (
        record(model, [CONV], detail=(CONV,)) as recorder,
        record_attention(model, tokens) as heads,
    ):
        toy.draw(model)
    along = Along(label="w4")
    along.add(0, 900.0, torch.ones(2, 3), torch.ones(2, 3))
    saved = {"activations": recorder, "attention": heads, "trajectory": along}
    kinds = {
        "activations": ActivationRecord,
        "attention": AttentionRecord,
        "trajectory": TrajectoryRecord,
    }
    needed = {"activations": "details", "attention": "mapped", "trajectory": "record"}
    for name, kind in kinds.items():
        path = tmp_path / f"{name}.npz"
        saved[name].result().save(path)
        whole = path.read_bytes()
        for cut in (0, 10, len(whole) // 2):
            path.write_bytes(whole[:cut])
            with pytest.raises(UserError, match="missing or damaged"):
                kind.load(path)
        path.write_bytes(whole)
        kind.load(path)
        for changes, told in (
            ({"version": 0}, "earlier form"),
            ({"version": 99}, "this program reads"),
            ({"kind": "picture"}, "holds 'picture'"),
            ({needed[name]: None}, "missing or damaged"),
            ({needed[name]: 7}, "missing or damaged"),
        ):
            _rewritten(path, **changes)
            with pytest.raises(UserError, match=told) as error:
                kind.load(path)
            assert "again" in str(error.value)
            path.write_bytes(whole)


def test_unknown_layers_and_steps_are_refused():
    model = toy.unet()
    with pytest.raises(UserError, match="conv_out"), record(model, ["conv_oot"]):
        pass
    with record(model, [CONV], detail=(CONV,)) as recorder:
        toy.draw(model)
    result = recorder.result()
    assert result.layers == (CONV,)
    with pytest.raises(UserError, match="recorded: 1, 2, 3"):
        result.layer(CONV, 9)
    with pytest.raises(UserError, match="not recorded"):
        result.layer(ATTENTION, 0)


def test_too_much_detail_is_refused_before_it_starts():
    with (
        pytest.raises(UserError, match="MB of memory"),
        record(toy.unet(), detail_steps=range(1000)),
    ):
        pass
