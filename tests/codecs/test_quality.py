"""Errors against closed forms and against the measured goals, on unit Gaussian data."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vqdq import codecs, kernels
from vqdq.codecs import rotation
from vqdq.codecs.additive import AdditiveParams
from vqdq.codecs.base import WeightShape
from vqdq.errors import UserError


def gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def relative_error(weight: torch.Tensor, decoded: torch.Tensor) -> float:
    return float((weight - decoded).square().sum() / weight.square().sum())


@pytest.mark.parametrize(("bits", "expected"), [(2, 0.1188), (3, 0.03744), (4, 0.01154)])
def test_uniform_reaches_the_optimal_uniform_quantizer(bits: int, expected: float) -> None:
    """Max, IRE Trans. Inf. Theory 1960, table II: the best even-level uniform quantizers."""
    weight = gaussian(64, 4096)
    error = relative_error(weight, codecs.encode(weight, "uniform", bits=bits).decode())
    assert error == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(("bits", "goal"), [(2, 0.0705), (3, 0.0183), (4, 0.00485)])
def test_trellis_reaches_its_goal(bits: int, goal: float) -> None:
    weight = gaussian(640, 256)
    packed = codecs.encode(weight, "trellis", bits=bits)
    assert 4.0**-bits < relative_error(weight, packed.decode()) <= goal
    shape = WeightShape(out_features=1280, in_features=1280)
    full = codecs.create("trellis", bits=bits).storage(shape)
    assert full.bits_per_weight <= bits + 0.02


@pytest.mark.parametrize(("count", "goal"), [(2, 0.095), (3, 0.0272), (4, 0.0083)])
def test_universal_codebooks_reach_their_goal(count: int, goal: float) -> None:
    weight = gaussian(128, 512)
    packed = codecs.encode(weight, "additive", num_codebooks=count)
    assert "codebooks" not in packed.tensors
    assert 4.0**-count < relative_error(weight, packed.decode()) <= goal


def test_own_codebooks_fit_what_gaussian_ones_do_not() -> None:
    weight = gaussian(256, 256) * (torch.rand(256, 256, generator=torch.Generator()) < 0.3)
    universal = AdditiveParams(num_codebooks=2, codebooks="universal", rotation=0)
    own = replace(universal, codebooks="layer", rounds=6)
    errors = [
        relative_error(weight, codecs.create("additive", params).encode(weight).decode())
        for params in (universal, own)
    ]
    assert errors[1] < 0.8 * errors[0]


def heavy_tailed() -> torch.Tensor:
    """Student-t weights with five degrees of freedom, [256, 256]."""
    normal = torch.randn(6, 256, 256, generator=torch.Generator().manual_seed(1))
    return normal[0] / normal[1:].square().mean(dim=0).sqrt()


def test_rotation_gives_gaussian_codebooks_gaussian_weights() -> None:
    weight = heavy_tailed()
    rotated = relative_error(weight, codecs.encode(weight, "additive").decode())
    plain = codecs.encode(weight, "additive", rotation=0).decode()
    assert rotated < 0.9 * relative_error(weight, plain)
    assert rotated == pytest.approx(0.0266, rel=0.04)


def test_auto_codebooks_follow_the_closed_form() -> None:
    codec = codecs.create("additive", num_codebooks=3)
    small = codec.layout(WeightShape(out_features=512, in_features=1024))
    large = codec.layout(WeightShape(out_features=1280, in_features=1280))
    assert [spec.name for spec in small] == ["codes", "scales", "signs"]
    assert [spec.name for spec in large] == ["codes", "scales", "codebooks", "signs"]
    extra = 8 * large[2].num_bytes / (1280 * 1280)
    assert extra == pytest.approx(0.06)


def test_weights_of_a_few_values_decode_exactly() -> None:
    """Two values a row are two levels of any symmetric grid."""
    signs = gaussian(32, 64).sign()
    decoded = codecs.encode(signs * 0.25, "uniform", bits=2, clip="absmax").decode()
    assert torch.allclose(decoded, signs * 0.25, rtol=2**-10)
    searched = codecs.encode(signs * 0.25, "uniform", bits=2).decode()
    assert torch.allclose(searched, signs * 0.25, rtol=2**-10)  # fp16 steps


def test_asymmetric_grids_follow_the_range() -> None:
    weight = gaussian(16, 256).abs()
    lopsided = codecs.encode(weight, "uniform", bits=4, symmetric=False, clip="absmax").decode()
    even = codecs.encode(weight, "uniform", bits=4, clip="absmax").decode()
    assert relative_error(weight, lopsided) < 0.5 * relative_error(weight, even)


def test_groups_help_uneven_rows() -> None:
    weight = gaussian(16, 256) * torch.logspace(-2, 0, 256)
    grouped = codecs.encode(weight, "uniform", bits=4, group_size=32).decode()
    by_row = codecs.encode(weight, "uniform", bits=4).decode()
    assert relative_error(weight, grouped) < 0.7 * relative_error(weight, by_row)


def test_rotation_makes_heavy_tails_gaussian() -> None:
    """Student-t weights: without the rotation the trellis loses more than 1 dB at 3 bits."""
    weight = heavy_tailed()
    rotated = relative_error(weight, codecs.encode(weight, "trellis", state_bits=10).decode())
    plain = codecs.encode(weight, "trellis", state_bits=10, rotation=0).decode()
    assert rotated < 0.8 * relative_error(weight, plain)
    assert rotated == pytest.approx(0.0192, rel=0.08)


def test_rotation_never_crosses_a_tap() -> None:
    """A weight on one tap alone stays on that tap."""
    weight = torch.zeros(16, 9 * 64)
    weight[:, 64:128] = gaussian(16, 64)
    stored = rotation.random_signs(9 * 64, torch.Generator().manual_seed(0))
    shape = WeightShape(out_features=16, in_features=9 * 64, taps=9)
    block = rotation.block_size(shape, 256)
    rotated = rotation.rotate(weight, stored, block)
    assert block == 64
    assert not rotated[:, :64].any()
    assert not rotated[:, 128:].any()
    assert torch.allclose(rotation.unrotate(rotated, stored, block), weight, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "largest", "block"),
    [
        (320, 128, 64),
        (320, 256, 64),
        (1280, 256, 256),
        (1280, 128, 128),
        (48, 128, 16),
        (100, 128, 0),
        (8, 128, 0),
        (64, 0, 0),
    ],
)
def test_rotation_blocks(channels: int, largest: int, block: int) -> None:
    shape = WeightShape(out_features=4, in_features=9 * channels, taps=9)
    assert rotation.block_size(shape, largest) == block


def test_trellis_levels_times_scales_are_the_rotated_weight() -> None:
    weight = gaussian(48, 64)
    codec = codecs.create("trellis")
    packed = codec.encode(weight)
    levels, scales = codec.levels(packed)
    assert levels.dtype == torch.int8
    rotated = kernels.hadamard(packed.decode() * rotation.signs(packed.tensors["signs"], 64), 64)
    assert torch.allclose(levels.float() * scales[:, None], rotated, atol=1e-5)


def test_too_few_rows_for_a_trellis_are_named() -> None:
    codec = codecs.create("trellis", bits=3, state_bits=12)
    codec.check(WeightShape(out_features=4, in_features=64))
    with pytest.raises(UserError, match="3 output rows are fewer than the 4"):
        codec.check(WeightShape(out_features=3, in_features=64))


def test_groups_that_do_not_divide_name_those_that_do() -> None:
    codec = codecs.create("additive", group_size=16)
    with pytest.raises(UserError, match="groups of 16") as fault:
        codec.check(WeightShape(out_features=8, in_features=9 * 24, taps=9))
    assert fault.value.remedy == "Use group_size 8 or 4."
    with pytest.raises(UserError, match="7 input channels") as fault:
        codecs.encode(torch.zeros(8, 7), "additive")
    assert "trellis" in fault.value.remedy
