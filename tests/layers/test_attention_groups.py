"""Groups stored for q, k and v: buffers of the attention layers, read at each noise level."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.capture import toy
from vqdq.activations import InputRanges, Site, create
from vqdq.activations.attention import AttentionParams
from vqdq.activations.base import fake_quantize
from vqdq.layers.attention import (
    attach_attention_,
    attention_layout,
    attention_places,
    attention_sites,
    detach_attention_,
    seen_attention,
    stored_name,
)
from vqdq.layers.inputs import NoiseLevel


def _calibrated(model: nn.Module, params: AttentionParams) -> tuple[Any, dict[str, torch.Tensor]]:
    """Sites of the toy, and parameters from the extremes of one drawing."""
    seen: dict[str, list[torch.Tensor]] = {}
    with seen_attention(model, params, lambda site, rows: seen.setdefault(site, []).append(rows)):
        toy.draw(model)
    positions: dict[str, int] = {}
    for site, rows in seen.items():
        apart = site.endswith(("attn2.k", "attn2.v"))
        positions[f"{site[:-1]}to_{site[-1]}"] = rows[0].shape[1] + apart
    sites = attention_sites(attention_places(model), params, positions)
    quantizer = create(params.qkv_method, bits=params.qkv_bits, groups=params.qkv_groups)
    stored: dict[str, torch.Tensor] = {}
    for name, site in sites.items():
        steps = torch.stack(seen[name])  # [steps, rows, positions, channels]
        ranges = InputRanges(
            timesteps=torch.tensor([900.0, 500.0, 100.0]),
            channel_low=steps.amin((1, 2)),
            channel_high=steps.amax((1, 2)),
            position_low=steps.amin((1, 3)),
            position_high=steps.amax((1, 3)),
        )
        for key, tensor in quantizer.calibrate(ranges, site).items():
            stored[stored_name(name, key)] = tensor
    return sites, stored


def test_stored_groups_are_buffers_that_no_cast_touches() -> None:
    params = AttentionParams(bits=8, qkv_bits=8, qkv_method="dgq", qkv_groups=4)
    model, level = toy.unet(), NoiseLevel()
    level.attach_(model)
    plain = toy.draw(model)
    sites, stored = _calibrated(model, params)
    layout = {spec.name: (spec.dtype, spec.shape) for spec in attention_layout(params, sites)}
    assert layout == {key: (each.dtype, tuple(each.shape)) for key, each in stored.items()}
    attach_attention_(model, params, level, sites, stored)
    rounded = toy.draw(model)
    error = (rounded - plain).square().sum() / plain.square().sum()
    assert 0 < float(error) < 1e-4
    state = model.state_dict()
    assert all(torch.equal(state[key], each) for key, each in stored.items())
    again = toy.unet()
    levels = NoiseLevel()
    levels.attach_(again)
    ghosts = {key: torch.empty_like(each) for key, each in stored.items()}
    attach_attention_(again, params, levels, sites, ghosts)
    again.load_state_dict(state)
    assert torch.equal(toy.draw(again), rounded)
    again.to(torch.bfloat16)
    kept = again.state_dict()
    assert all(torch.equal(kept[key], each) for key, each in stored.items())
    assert all(kept[key].dtype == each.dtype for key, each in stored.items())


def test_other_sizes_batches_and_lengths_than_calibrated_are_drawn() -> None:
    params = AttentionParams(bits=8, qkv_bits=8, qkv_method="dgq", qkv_groups=4)
    model, level = toy.unet(), NoiseLevel()
    level.attach_(model)
    sites, stored = _calibrated(model, params)
    generator = torch.Generator().manual_seed(7)
    for batch, height, width, tokens in ((1, 8, 8, 8), (3, 12, 8, 8), (2, 16, 16, 1), (1, 8, 8, 5)):
        noise = torch.randn(batch, 4, height, width, generator=generator)
        text = torch.randn(batch, tokens, toy.TEXT_WIDTH, generator=generator)
        expected = model(noise, 700.0, text).sample
        attach_attention_(model, params, level, sites, stored)
        error = (model(noise, 700.0, text).sample - expected).square().mean()
        detach_attention_(model)
        assert 0 < float(error / expected.square().mean()) < 1e-2


def test_the_groups_of_a_site_are_its_quantizers() -> None:
    params = AttentionParams(qkv_bits=6, qkv_method="dgq", qkv_groups=2, scores="off")
    model, level = toy.unet(), NoiseLevel()
    sites, stored = _calibrated(model, params)
    found = attach_attention_(model, params, level, sites, stored)
    name, quantizer = next(iter(found.items()))
    site: Site = sites[f"{name}.q"]
    level.timestep = 500.0
    x = torch.randn(2, 4, site.positions, site.channels)
    own = create("dgq", bits=6, groups=2)
    tensors = {spec.name: stored[stored_name(f"{name}.q", spec.name)] for spec in own.layout(site)}
    grid = own.grid(x.flatten(0, 1), tensors, site, 500.0)
    expected = fake_quantize(x.flatten(0, 1), grid).view(x.shape)
    assert torch.equal(quantizer.rounded("q", x, cross=False), expected)
