"""8-bit weights: the grid, its error, and the levels that an integer product takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vqdq import codecs
from vqdq.codecs.base import InputStats, WeightShape


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("clip", ["mse", "absmax"])
def test_the_levels_are_the_decoded_weight_itself(clip: str) -> None:
    packed = codecs.encode(noise(40, 9 * 16), "int8", clip=clip, taps=9)
    found = codecs.create("int8", clip=clip).eight_bit(packed)
    assert found is not None
    assert found.exact
    assert found.block == 0
    assert found.levels.dtype == torch.int8
    assert int(found.levels.min()) >= -127
    assert torch.equal(found.levels.float() * found.scales[:, None], packed.decode())


def test_a_weight_takes_a_byte_and_a_row_two_more() -> None:
    shape = WeightShape(out_features=320, in_features=1280)
    assert codecs.create("int8").storage(shape).bits_per_weight == 8 + 16 / 1280


def test_the_largest_weight_is_127_and_the_error_a_twelfth_of_the_squared_step() -> None:
    weight = torch.rand(64, 4096, generator=torch.Generator().manual_seed(1)) * 2 - 1
    packed = codecs.encode(weight, "int8", clip="absmax")
    levels = codecs.create("int8").eight_bit(packed).levels  # pyright: ignore
    assert torch.equal(levels.int().abs().amax(1), torch.full((64,), 127, dtype=torch.int32))
    error = float((packed.decode() - weight).square().mean())
    assert error == pytest.approx((1 / 127) ** 2 / 12, rel=0.02)


@pytest.mark.parametrize("kind", ["gaussian", "heavy", "outlier"])
def test_the_range_is_the_best_of_a_search_in_plain_numpy(kind: str) -> None:
    weight = noise(4, 20_000)
    if kind == "heavy":
        weight = weight * weight.abs()
    if kind == "outlier":
        weight[:, 0] = 5.0
    exact = weight.double().numpy()
    largest, best = np.abs(exact).max(1, keepdims=True), np.full(4, np.inf)
    for part in np.linspace(0.5, 1.02, 200):
        step = part * largest / 127
        rounded = np.clip(np.round(exact / step), -127, 127) * step
        best = np.minimum(best, np.square(exact - rounded).mean(1))
    found = (codecs.encode(weight, "int8").decode() - weight).double().square().mean(1).numpy()
    whole = codecs.encode(weight, "int8", clip="absmax").decode() - weight
    assert found == pytest.approx(best, rel=0.01)
    assert bool((found <= whole.double().square().mean(1).numpy() * 1.0001).all())


def test_feedback_lowers_the_loss_under_correlated_inputs() -> None:
    weight, inputs = noise(32, 128), noise(512, 128, seed=1)
    inputs = inputs + 2 * inputs.roll(1, dims=1) + inputs.mean(1, keepdim=True) * 8
    hessian = inputs.T @ inputs / len(inputs)

    def loss(decoded: torch.Tensor) -> float:
        error = (weight - decoded).double()
        return float(((error @ hessian.double()) * error).sum())

    codec = codecs.create("int8")
    plain, aware = codec.encode(weight), codec.encode(weight, stats=InputStats(hessian=hessian))
    assert loss(aware.decode()) < 0.7 * loss(plain.decode())
    assert aware.storage.total_bytes == plain.storage.total_bytes


def test_moved_scales_keep_the_levels() -> None:
    codec = codecs.create("int8")
    packed = codec.encode(noise(16, 64))
    moved = codec.rescaled(packed, torch.full((16,), 2.0))
    assert torch.equal(moved.decode(), 2 * packed.decode())
    assert torch.equal(codec.eight_bit(moved).levels, codec.eight_bit(packed).levels)  # pyright: ignore
