"""The scalar baselines against published numbers, closed forms and exact storage."""

from __future__ import annotations

import math

import pytest
import torch

from vqdq import codecs
from vqdq.codecs.base import InputStats, WeightShape
from vqdq.codecs.lloyd_max import gaussian_levels
from vqdq.codecs.nf4 import normal_float_levels

NF4 = (  # QLoRA, arXiv 2305.14314, appendix E
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(weight: torch.Tensor, decoded: torch.Tensor) -> float:
    return float((weight - decoded).square().sum() / weight.square().sum())


def bits_per_weight(name: str, **params: object) -> float:
    shape = WeightShape(out_features=1280, in_features=1280)
    return codecs.create(name, **params).storage(shape).bits_per_weight


@pytest.mark.parametrize(
    ("bits", "published"),
    [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497), (5, 0.002499), (6, 0.000644)],
)
def test_lloyd_max_levels_have_the_published_error(bits: int, published: float) -> None:
    """Max 1960, table I; the error is integrated on a fine grid, independently of the method."""
    levels = gaussian_levels(bits).double()
    x = torch.linspace(-9, 9, 180_001, dtype=torch.float64)
    density = torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    nearest = levels[torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)]
    error = float(((x - nearest).square() * density).sum() * (x[1] - x[0]))
    assert error == pytest.approx(published, rel=3e-3)
    assert torch.equal(levels, -levels.flip(0))


@pytest.mark.parametrize(("bits", "expected"), [(2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_lloyd_max_reaches_it_on_gaussian_weights(bits: int, expected: float) -> None:
    weight = noise(64, 4096)
    error = relative_error(weight, codecs.encode(weight, "lloyd_max", bits=bits).decode())
    assert error == pytest.approx(expected, rel=0.015)


def test_lloyd_max_beats_even_steps_on_heavy_tails() -> None:
    weight = noise(64, 1024) / noise(5, 64, 1024, seed=1).square().mean(dim=0).sqrt()
    even = relative_error(weight, codecs.encode(weight, "uniform", bits=3).decode())
    assert relative_error(weight, codecs.encode(weight, "lloyd_max", bits=3).decode()) < 0.9 * even


def test_nf4_levels_are_the_published_ones() -> None:
    assert normal_float_levels().tolist() == pytest.approx(NF4, abs=1e-6)
    assert normal_float_levels()[7] == 0


def test_nf4_is_the_nearest_published_level_times_the_largest_weight() -> None:
    weight = noise(32, 256)
    decoded = codecs.encode(weight, "nf4").decode().reshape(-1, 64)
    groups = weight.reshape(-1, 64).double()
    largest = groups.abs().amax(dim=1, keepdim=True).half().double()
    levels = torch.tensor(NF4, dtype=torch.float64) * largest  # [groups, 16]
    nearest = (groups[:, :, None] - levels[:, None, :]).abs().argmin(dim=2)
    torch.testing.assert_close(decoded.double(), levels.gather(1, nearest), rtol=1e-5, atol=1e-6)


def test_nf4_error_on_gaussian_weights() -> None:
    """Groups of 64: .0085 at 4.25 bits, and the same at 4.13 with double quantization."""
    weight = noise(512, 512)
    errors = [
        relative_error(weight, codecs.encode(weight, "nf4", double_quant=double).decode())
        for double in (False, True)
    ]
    assert errors == pytest.approx([0.0085, 0.0085], rel=0.01)


def test_storage_is_the_closed_form() -> None:
    assert bits_per_weight("nf4") == 4 + 16 / 64
    assert bits_per_weight("nf4", double_quant=True) == 4 + 8 / 64 + 16 / (64 * 256)
    assert bits_per_weight("lloyd_max", bits=3) == 3 + 16 / 1280
    assert bits_per_weight("lloyd_max", bits=5, group_size=128) == 5 + 16 / 128
    assert bits_per_weight("uniform", bits=3) == 3 + 16 / 1280
    for name in ("uniform", "gptq"):
        grouped = bits_per_weight(name, bits=4, group_size=64, symmetric=False)
        assert grouped == 4 + (16 + 8) / 64
    assert bits_per_weight("gptq") == 4 + (16 + 8) / 1280


def test_a_shorter_last_group_has_a_scale_of_its_own() -> None:
    shape = WeightShape(out_features=8, in_features=100)
    scales = codecs.create("lloyd_max", group_size=64).layout(shape)[1]
    assert scales.shape == (8, 2)
    weight = noise(8, 100)
    weight[:, 64:] *= 1000.0
    decoded = codecs.encode(weight, "uniform", bits=8, group_size=64).decode()
    assert relative_error(weight[:, :64], decoded[:, :64]) < 1e-3
    assert relative_error(weight[:, 64:], decoded[:, 64:]) < 1e-3


def test_gptq_without_correlations_is_the_published_grid() -> None:
    """Min-max range over a row, integer zero point: written out in four lines here."""
    weight = noise(16, 64)
    packed = codecs.create("gptq", bits=3).encode(weight, stats=InputStats(hessian=torch.eye(64)))
    low, high = weight.amin(dim=1, keepdim=True), weight.amax(dim=1, keepdim=True)
    step = ((high - low) / 7).half().float()
    zero = (-low / step).round()
    codes = (weight / step + zero).round().clamp(0, 7)
    torch.testing.assert_close(packed.decode(), (codes - zero) * step)


def test_scales_moved_by_learning_move_the_rows() -> None:
    weight, factors = noise(16, 128), 1 + 0.05 * noise(16, seed=3)
    for name, values in (("lloyd_max", {}), ("nf4", {}), ("nf4", {"double_quant": True})):
        codec = codecs.create(name, **values)
        packed = codec.encode(weight)
        moved = codec.rescaled(packed, factors)
        assert moved.storage == packed.storage
        expected = packed.decode() * factors[:, None]
        assert relative_error(expected, moved.decode()) < 2e-5
