"""The trellis codec: error feedback against its closed form, the goals, and odd weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import vqdq
from vqdq import codecs, kernels
from vqdq.codecs import feedback, tables
from vqdq.codecs.base import Packed, WeightShape
from vqdq.errors import UserError


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def hessian(size: int, power: float) -> torch.Tensor:
    """Returns a covariance with eigenvalues i**-power in a random basis, mean 1."""
    spectrum = torch.arange(1, size + 1, dtype=torch.float64) ** -power
    basis = torch.linalg.qr(gaussian(size, size, seed=9).double())[0]
    return (basis * (spectrum * size / spectrum.sum())) @ basis.T


def loss(weight: torch.Tensor, packed: Packed, moments: torch.Tensor) -> float:
    """tr(ΔHΔᵀ) / tr(WHWᵀ)."""
    error, whole = (weight - packed.decode()).double(), weight.double()
    return float((error @ moments * error).sum() / (whole @ moments * whole).sum())


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_feedback_gains_what_the_closed_form_says(power: float) -> None:
    weight, moments = gaussian(512, 256), hessian(256, power)
    plain = codecs.encode(weight, "trellis", state_bits=10, rotation=0)
    fed = codecs.encode(weight, "trellis", hessian=moments, damping=0.01, state_bits=10, rotation=0)
    order = feedback.strongest_first(moments)
    predicted = feedback.factor(moments[order][:, order], 0.01).predicted_gain
    # what the codec loses on white data, not on this weight, is what feedback multiplies
    white = loss(weight, plain, torch.eye(256, dtype=torch.float64))
    assert loss(weight, fed, moments) / white == pytest.approx(predicted, rel=0.03)
    assert loss(weight, fed, moments) < loss(weight, plain, moments)


def test_feedback_does_not_depend_on_threads() -> None:
    weight, moments = gaussian(512, 96), hessian(96, 1.0)
    one = codecs.encode(weight, "trellis", hessian=moments, state_bits=8)
    torch.set_num_threads(2)
    two = codecs.encode(weight, "trellis", hessian=moments, state_bits=8)
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, two.tensors[name])


def test_feedback_levels_uneven_channels() -> None:
    """Inputs that matter a thousand times more get their share of the bits by the rotation."""
    weight, size = gaussian(256, 128), torch.logspace(-1.5, 1.5, 128, dtype=torch.float64)
    moments = torch.diag(size)
    plain = codecs.encode(weight, "trellis", state_bits=8)
    fed = codecs.encode(weight, "trellis", hessian=moments, damping=0.01, state_bits=8)
    assert loss(weight, fed, moments) < 0.5 * loss(weight, plain, moments)


def test_inputs_that_are_never_seen_feed_nothing_back() -> None:
    weight = gaussian(64, 32)
    silent = codecs.encode(weight, "trellis", hessian=torch.zeros(32, 32), state_bits=8)
    assert bool(torch.isfinite(silent.decode()).all())
    singular = torch.zeros(32, 32)
    singular[:16, :16] = hessian(16, 1.0).float()
    packed = codecs.encode(weight, "trellis", hessian=singular, state_bits=8)
    assert loss(weight, packed, singular.double()) < 0.02


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6])
def test_more_bits_cost_a_quarter_of_the_error(bits: int) -> None:
    """Within 1.3 dB of the bound 4**-bits at L = 12, with everything but the scales counted."""
    weight = gaussian(512, 128)
    packed = codecs.encode(weight, "trellis", bits=bits)
    error = float((weight - packed.decode()).square().mean() / weight.square().mean())
    assert 4.0**-bits < error < 1.35 * 4.0**-bits


@pytest.mark.parametrize(("bits", "state_bits"), tables.TRELLIS_SHAPES)
def test_shipped_tables_are_centred_and_shrunk(bits: int, state_bits: int) -> None:
    """A code at distortion D has the power 1 − D when the source has 1."""
    table = tables.trellis(bits, state_bits)
    assert table.shape == (1 << state_bits,)
    data = gaussian(256, 64 if state_bits > 12 else 128)
    targets = (data * (kernels.COST_UNITS / tables.TRELLIS_STEP)).round().to(torch.int16)
    codes = kernels.trellis_encode(targets, table, bits)
    levels = kernels.trellis_decode(codes, table, bits, 256) * tables.TRELLIS_STEP
    error, power = float((data - levels).square().mean()), float(data.square().mean())
    assert abs(float((data - levels).mean())) < 0.01
    assert float(levels.square().mean()) == pytest.approx(power - error, abs=0.03)


@pytest.mark.parametrize(("bits", "state_bits"), [(5, 8), (6, 10), (5, 16)])
def test_a_table_that_does_not_exist_is_named(bits: int, state_bits: int) -> None:
    with pytest.raises(UserError, match="no table") as caught:
        codecs.encode(gaussian(64, 16), "trellis", bits=bits, state_bits=state_bits)
    assert "12" in caught.value.remedy


def test_rotation_of_the_outputs_alone_makes_heavy_tails_gaussian() -> None:
    normal = torch.randn(6, 256, 128, generator=torch.Generator().manual_seed(1))
    weight = (
        normal[0] / normal[1:].square().mean(dim=0).sqrt() * torch.logspace(-1, 1, 256)[:, None]
    )
    both = codecs.encode(weight, "trellis", state_bits=8, rotation=0, output_rotation=128)
    assert both.tensors.keys() == {"codes", "scales", "row_signs"}
    codec = codecs.create("trellis", both.params)
    assert both.storage.total_bytes == codec.storage(both.shape).total_bytes
    none = codecs.encode(weight, "trellis", state_bits=8, rotation=0)
    norm = weight.square().sum(dim=1, keepdim=True)
    errors = [
        float(((weight - packed.decode()).square() / norm).sum(dim=1).mean())
        for packed in (both, none)
    ]
    assert errors[0] == pytest.approx(0.0202, rel=0.04)  # as on Gaussian weights
    assert errors[1] > 1.3 * errors[0]
    factors = torch.linspace(0.5, 2, 256)
    moved = codec.rescaled(both, factors).decode()
    assert torch.allclose(moved, both.decode() * factors[:, None], rtol=2e-3, atol=1e-4)


def test_output_rotation_needs_a_block_of_rows() -> None:
    shape = WeightShape(out_features=100, in_features=64)
    names = [spec.name for spec in codecs.create("trellis", output_rotation=64).layout(shape)]
    assert names == ["codes", "scales", "signs"]


def test_rows_that_are_zero_or_tiny_decode_to_zero_with_feedback() -> None:
    weight = gaussian(64, 32)
    weight[3], weight[4] = 0.0, 1e-42
    packed = vqdq.encode(weight, "trellis", hessian=hessian(32, 0.5), state_bits=8)
    decoded = packed.decode()
    assert not decoded[3:5].any()
    assert loss(weight, packed, torch.eye(32, dtype=torch.float64)) < 0.04
