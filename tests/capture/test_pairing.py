"""Paired errors, trajectories, weights and refused files, against direct computation."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.capture import toy
from vqdq import codecs
from vqdq.capture import (
    ActivationRecord,
    Along,
    AttentionRecord,
    Pairing,
    TrajectoryRecord,
    archive,
    record,
    record_attention,
    tokenize,
    weight_record,
)
from vqdq.errors import UserError
from vqdq.layers.quantized import pack

CONV = "down_blocks.1.resnets.0.conv1"
TEXT = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


def _hooks(model: nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def _changed() -> nn.Module:
    other = toy.unet()
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name.endswith("weight") and parameter.ndim > 1:
                parameter.add_(torch.randn(parameter.shape).mul_(0.003))
    return other


@pytest.mark.parametrize("budget", [1 << 28, 20_000])
def test_paired_errors_are_exact_however_small_the_budget(budget):
    model, other = toy.unet(), _changed()
    with record(other, guided=True) as recorder:
        toy.draw(other)
    found = recorder.result()
    given = toy.inputs()
    pairing = Pairing(model, other, found.layers, guided=True, budget=budget)
    passes = 0
    for step, time in enumerate((900.0, 500.0, 100.0)):
        call = (given["sample"] * (step + 1), time, given["encoder_hidden_states"])
        passes += pairing.add(step, lambda c=call: model(*c), lambda c=call: other(*c))
    assert (passes > 3) == (budget < 1 << 20)
    assert _hooks(model) == _hooks(other) == 0
    paired = found.paired(*pairing.energies(found)).scalars.paired_sqnr_db
    assert np.isfinite(paired[:, found.layers.index("conv_out")]).all()
    for name in (CONV, TEXT, "conv_out"):
        outputs: list[torch.Tensor] = []
        for each in (model, other):
            handle = each.get_submodule(name).register_forward_hook(
                lambda _m, _i, out, outputs=outputs: outputs.append(out.double())
            )
            with torch.no_grad():
                each(given["sample"] * 2, 500.0, given["encoder_hidden_states"])
            handle.remove()
        for half in (0, 1):
            a, b = outputs[0][half], outputs[1][half]
            exact = 10 * math.log10(float(a.square().sum() / (a - b).square().sum()))
            assert paired[half, found.layers.index(name), 1] == pytest.approx(exact, abs=1e-3)


def test_models_that_do_not_match_are_refused():
    with pytest.raises(UserError, match="only one of the two models"):
        Pairing(toy.unet(), nn.Linear(2, 2), [CONV], guided=False)
    with record(toy.unet()) as recorder:
        pass
    with pytest.raises(UserError, match="same guidance"):
        Pairing(toy.unet(), toy.unet(), [CONV], guided=True).energies(recorder.result())


def test_errors_along_the_steps():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(3, 4, 8, 8, generator=generator)
    along = Along(label="small", context={"prompt": "a"})
    for step in range(2):
        along.add(step, 900.0 - step, truth, truth * 1.1, latents=(truth, -truth))
        along.add(step, 900.0 - step, truth, truth, latents=(truth, truth), free=True)
    found = along.result()
    np.testing.assert_allclose(found.forced_sqnr_db, 20, atol=1e-5)
    np.testing.assert_allclose(found.forced_cosine, -1)
    assert np.isposinf(found.free_sqnr_db).all()
    np.testing.assert_allclose(found.free_cosine, 1)
    assert (found.samples, found.timesteps) == (3, (900.0, 899.0))


def test_trajectories_come_back_from_disk(tmp_path):
    along = Along(label="small")
    along.add(0, 900.0, torch.ones(1, 4), torch.zeros(1, 4))
    saved = along.result()
    saved.save(tmp_path / "along.npz")
    found = TrajectoryRecord.load(tmp_path / "along.npz")
    assert (found.label, found.samples, found.timesteps) == ("small", 1, (900.0,))
    assert found.forced_sqnr_db.tolist() == [0.0]
    assert np.isnan(found.free_cosine).all()


@pytest.mark.parametrize(
    ("codec", "settings", "books", "codes"),
    [
        ("uniform", {"bits": 4}, 1, 16),
        ("additive", {"num_codebooks": 2, "codeword_bits": 4, "rounds": 1}, 2, 16),
        ("trellis", {"bits": 2, "state_bits": 8}, 1, None),
    ],
)
def test_weights_before_and_after(codec, settings, books, codes):
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 24, 3)
    weight = layer.weight.detach().permute(0, 2, 3, 1).reshape(24, -1)
    packed = codecs.encode(weight, codec, taps=9, **settings)
    found = weight_record("conv", layer, pack(layer, packed))
    error = weight - packed.decode()
    exact = 10 * torch.log10(error.square().sum(1) / weight.square().sum(1))
    np.testing.assert_allclose(found.row_error_db, exact, atol=1e-3)
    assert found.reference.sum() == found.variant.sum() == weight.numel()
    assert len(found.use) == books
    if codes is not None:
        assert found.use.shape[1] == codes
    per_code = 8 if codec == "additive" else 1
    assert found.use.sum() == weight.numel() // per_code * books
    whole = weight_record("conv", layer, layer)
    assert np.isneginf(whole.row_error_db).all()
    assert whole.use.size == 0


def test_records_of_another_form_are_refused_plainly(tmp_path):
    path = tmp_path / "old.npz"
    archive.save(path, {"kind": "activations", "version": 1}, {})
    with pytest.raises(UserError, match=r"earlier form \(1, now 2\)"):
        ActivationRecord.load(path)
    archive.save(path, {"kind": "activations", "version": 99}, {})
    with pytest.raises(UserError, match="form 99, this program reads 2"):
        ActivationRecord.load(path)
    with pytest.raises(UserError, match="holds 'activations', not 'attention'"):
        AttentionRecord.load(path)


def test_self_attention_and_the_spread_of_scores():
    model = toy.unet()
    tokens, empty = (tokenize(toy.Tokenizer(), text) for text in ("red circle", ""))
    with record_attention(model, tokens, negative=empty) as recorder:
        toy.draw(model)
    found = recorder.result()
    assert len(found.self_layers) == 4
    assert all(name.endswith("attn1") for name in found.self_layers)
    name = found.self_layers[0]  # 16 places, 4 heads: all queries are looked at
    assert found.self_counts(name).sum() == 3 * 4 * 16 * 16
    assert found.self_counts(name, step=1).sum() == 4 * 16 * 16
    seen = found.self_map(name)
    assert seen is not None
    assert seen.shape == (4, 4)
    assert float(seen.sum()) == pytest.approx(1, abs=1e-5)
    peak, mean = found.spread
    assert (peak >= mean).all()
    start = found.mass[:, :, :, :, 0].mean(axis=3)
    np.testing.assert_allclose(7 * mean, 1 - start, rtol=1e-4)  # the mean of the other 7 tokens
    own = found.self_spread[1]
    np.testing.assert_allclose(own, np.where(own > 0.1, 1 / 4, 1 / 16), rtol=1e-4)
    assert found.samples == 1
    with pytest.raises(UserError, match="self-attention was not recorded"):
        found.self_map("nowhere")


def test_layers_by_pattern():
    with record(toy.unet()) as recorder:
        toy.draw(toy.unet())
    nothing = recorder.result()
    known = dataclasses.replace(nothing, layers=("down.0.conv", "down.1.attn2.to_k", "up.0.conv"))
    assert known.matching("down*") == ("down.0.conv", "down.1.attn2.to_k")
    assert known.matching("attn2") == ("down.1.attn2.to_k",)
    with pytest.raises(UserError, match='no recorded layer matches "middle"'):
        known.matching("middle")
