"""Sorted blocks against plain numpy, and the gain that their steps predict."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.activations.made import decibels, noise, power, ranges_of, rounding_error
from vqdq import activations
from vqdq.activations.base import Site, fake_quantize

TIMES = [900.0, 500.0, 100.0]


def by_hand(inputs: torch.Tensor, block: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Groups, lows and highs of inputs [steps, batch, positions, channels]."""
    values = inputs.numpy().astype(np.float64)
    low, high = values.min((1, 2)), values.max((1, 2))
    width = np.maximum(high, 0) - np.minimum(low, 0)
    order = np.argsort((width / width.max(1, keepdims=True)).mean(0), kind="stable")
    groups = np.zeros(values.shape[-1], dtype=int)
    lows, highs = [], []
    for number, start in enumerate(range(0, len(order), block)):
        members = order[start : start + block]
        groups[members] = number
        lows.append(low[:, members].min(1))
        highs.append(high[:, members].max(1))
    return groups, np.stack(lows, 1), np.stack(highs, 1)


@pytest.mark.parametrize(("channels", "block"), [(100, 32), (128, 32), (320, 128), (65, 64)])
def test_blocks_are_those_of_plain_numpy(channels: int, block: int) -> None:
    scales = torch.rand(channels, generator=torch.Generator().manual_seed(1)) * 5
    inputs = noise(3, 2, 16, channels) * scales + scales.flip(0) * 0.3
    site = Site(channels=channels, positions=16)
    quantizer = activations.create("sorted", block=block, levels=3)
    stored = quantizer.calibrate(ranges_of(inputs, TIMES), site)
    groups, low, high = by_hand(inputs, block)
    assert stored["groups"].tolist() == groups.tolist()
    assert np.allclose(stored["low"].numpy(), low, rtol=1e-6)
    assert np.allclose(stored["high"].numpy(), high, rtol=1e-6)
    sizes = stored["groups"].bincount().tolist()
    assert sizes[:-1] == [block] * (len(sizes) - 1)
    assert sum(sizes) == channels


def test_few_channels_are_one_block() -> None:
    site = Site(channels=40, positions=16)
    inputs = noise(3, 2, 16, 40)
    stored, plain = (
        activations.create(name, levels=3).calibrate(ranges_of(inputs, TIMES), site)
        for name in ("sorted", "minmax")
    )
    assert set(stored) == {"timesteps", "low", "high"}
    assert torch.equal(stored["low"][:, 0], plain["low"])


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_outliers_that_fill_a_block_cost_the_others_nothing(bits: int) -> None:
    outliers, size = list(range(0, 128, 4)), 12.0  # 32 of 128 channels
    inputs = noise(3, 8, 64, 128)
    inputs[..., outliers] *= size
    site = Site(channels=128, positions=64)
    quantizer = activations.create("sorted", bits=bits, block=32, levels=3)
    stored = quantizer.calibrate(ranges_of(inputs, TIMES), site)
    grid = quantizer.grid(inputs[0], stored, site, 900.0)
    levels = 2**bits - 1
    predicted = 0.25 * rounding_error(size, 2 * size / levels)
    predicted += 0.75 * rounding_error(1, 2 / levels)
    found = power(fake_quantize(inputs[0], grid) - inputs[0])
    assert decibels(found / predicted) == pytest.approx(0, abs=0.1)
