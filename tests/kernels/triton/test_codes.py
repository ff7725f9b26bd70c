"""The card's kernels round activations to the reference's codes, and multiply them exactly."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.triton.test_decoding import DEVICE
from vqdq import kernels
from vqdq.kernels import int8_parts, int8_reference
from vqdq.kernels.backend import interpreted
from vqdq.kernels.int8 import NO_BORDER, Border, Lines


def some_lines(shape: tuple[int, ...], block: int, divides: bool, dtype: torch.dtype) -> Lines:
    generator = torch.Generator().manual_seed(sum(shape))
    channels = shape[1] if len(shape) == 4 else shape[2]
    values = (torch.randn(shape, generator=generator) * 3).to(dtype)
    signs = torch.randint(0, 2, (channels,), generator=generator) * 2.0 - 1
    return Lines(
        values=values,
        divisor=torch.rand(channels, generator=generator) + 0.5 if divides else torch.empty(0),
        signs=signs if block else torch.empty(0),
        block=block,
    )


KINDS_OF_LINES = pytest.mark.parametrize(
    ("shape", "block", "divides", "dtype"),
    [
        ((2, 5, 48), 16, True, torch.float32),
        ((1, 9, 70), 0, False, torch.bfloat16),
        ((2, 20, 3, 5), 0, True, torch.float32),
        ((2, 64, 2, 3), 64, False, torch.float16),
    ],
)


@KINDS_OF_LINES
def test_codes_equal_the_reference(
    shape: tuple[int, ...], block: int, divides: bool, dtype: torch.dtype
) -> None:
    lines = some_lines(shape, block, divides, dtype)
    there, (batch, positions, channels) = lines.on(torch.device(DEVICE)), lines.sizes
    with interpreted():
        own = kernels.own_codes(there, 8)
        extremes = kernels.line_extremes(there)
    for found, expected in zip(own[:3], int8_reference.own_codes(lines, 8)[:3], strict=True):
        assert torch.equal(found.cpu(), expected)
    for found, expected in zip(extremes[:2], int8_reference.line_extremes(lines), strict=False):
        assert torch.equal(found.cpu(), expected)
    for size in ((), (batch,), (1, positions), (batch, positions)):
        scale = torch.full(size, 0.03)
        scale += torch.arange(scale.numel()).reshape(size) * 0.001
        zero = torch.full(size, 117.0)
        border = Border(1, 1, 2, 0) if len(shape) == 4 and len(size) < 2 else NO_BORDER
        expected, _ = int8_reference.row_codes(lines, scale, zero, 6, border)
        with interpreted():
            codes, finite = kernels.row_codes(there, scale.to(DEVICE), zero.to(DEVICE), 6, border)
        assert torch.equal(codes.cpu(), expected)
        assert bool(finite)
    scale, zero = torch.rand(channels) * 0.1 + 0.01, torch.full((channels,), 9.0)
    with interpreted():
        codes, _ = int8_parts.channel_codes(there, scale.to(DEVICE), zero.to(DEVICE), 8)
    assert torch.equal(codes.cpu(), int8_reference.channel_codes(lines, scale, zero, 8)[0])


def test_what_is_not_finite_is_flagged_on_the_card() -> None:
    """In a row of its own range it is the scale; with a given grid, a tensor nobody waits for."""
    values = torch.ones(1, 3, 16)
    values[0, 1, 2], values[0, 2, 3] = torch.nan, torch.inf
    lines = Lines(values=values.to(DEVICE))
    grid = torch.ones((), device=DEVICE)
    with interpreted():
        _, scale, _, _ = kernels.own_codes(lines, 8)
        _, finite = kernels.row_codes(lines, grid, grid, 8)
        _, high, _ = kernels.line_extremes(lines)
    assert torch.equal(scale.cpu().isnan(), torch.tensor([[False, True, True]]))
    assert torch.equal(high.cpu().isnan(), torch.tensor([[False, True, True]]))
    assert not bool(finite)


def exact(
    codes: torch.Tensor, levels: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor
) -> torch.Tensor:
    """Returns scale · (codes − zero) · levelsᵀ in float64; scales broadcast over the channels."""
    return ((codes.double() - zero.double()) * scale.double()) @ levels.double().T


@pytest.mark.parametrize("size", [(), (2,), (1, 9), (2, 9)])
def test_a_product_of_rows_is_the_sum_of_whole_numbers(size: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(len(size))
    codes = torch.randint(0, 256, (2, 9, 72), generator=generator, dtype=torch.uint8)
    levels = torch.randint(-128, 128, (40, 72), generator=generator).to(torch.int8)
    scale = torch.rand(size, generator=generator) + 0.1
    zero = torch.randint(0, 256, size, generator=generator).float()
    columns, bias = torch.rand(40, generator=generator), torch.randn(40, generator=generator)
    wide = [p[:, None, None] if p.ndim == 1 else p[..., None] for p in (scale, zero)]
    expected = exact(codes, levels, *wide) * columns.double() + bias.double()
    moved = [part.to(DEVICE) for part in (scale, zero, columns, bias)]
    part = int8_parts.prepared(levels.to(DEVICE), 1)
    with interpreted():
        found = int8_parts.int8_product(codes.to(DEVICE), part, *moved, torch.float32)
    plain = int8_parts.reference_product(
        codes, int8_parts.prepared(levels, 1), scale, zero, columns, bias, torch.float32,
        int8_parts.Reading(),
    )  # fmt: skip
    whole = int8_parts.library_product(
        codes, int8_parts.prepared(levels, 1), scale, zero, columns, bias, torch.float32
    )
    for product in (found.cpu(), plain, whole):
        assert (product.double() - expected).abs().max() < 1e-6 * expected.abs().max()


def test_groups_of_channels_are_parts_of_one_product() -> None:
    """Zeros outside of the codes too, as DGQ has them."""
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(0, 256, (1, 20, 100), generator=generator, dtype=torch.uint8)
    levels = torch.randint(-127, 128, (33, 100), generator=generator).to(torch.int8)
    index = torch.randint(0, 3, (100,), generator=generator)
    scale, zero = torch.rand(3, generator=generator), torch.tensor([-70.0, 12.0, 300.0])
    expected = exact(codes, levels, scale[index], zero[index])
    part = int8_parts.prepared(levels.to(DEVICE), 1, index)
    placed = codes.to(DEVICE).index_select(2, part.source.clamp_min(0))
    one = torch.ones(33, device=DEVICE)
    with interpreted():
        found = int8_parts.int8_product(
            placed, part, scale.to(DEVICE), zero.to(DEVICE), one, None, torch.float32, by_group=True
        )
    assert (found.cpu().double() - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize(("stride", "dilation", "pad"), [((1, 1), (1, 1), 1), ((2, 1), (1, 2), 2)])
def test_a_convolution_is_never_unfolded_and_its_border_is_0(
    stride: tuple[int, int], dilation: tuple[int, int], pad: int
) -> None:
    """With a scale and a zero of its own for each pixel that is read."""
    generator = torch.Generator().manual_seed(pad)
    maps = torch.randint(0, 256, (2, 5, 6, 20), generator=generator, dtype=torch.uint8)
    levels = torch.randint(-127, 128, (33, 180), generator=generator).to(torch.int8)
    scale = torch.rand(2, 30, generator=generator)
    zero = torch.randint(0, 256, (2, 30), generator=generator).float()
    seen = (maps.double() - zero.reshape(2, 5, 6, 1)) * scale.reshape(2, 5, 6, 1).double()
    weight = levels.reshape(33, 3, 3, 20).permute(0, 3, 1, 2).double()
    expected = torch.nn.functional.conv2d(
        seen.permute(0, 3, 1, 2), weight, stride=stride, dilation=dilation, padding=pad
    ).permute(0, 2, 3, 1)
    reading = int8_parts.Reading(
        kernel=(3, 3), stride=stride, dilation=dilation, border=Border(pad, pad, pad, pad)
    )
    one, moved = torch.ones(33), [part.to(DEVICE) for part in (scale, zero)]
    part = int8_parts.prepared(levels.to(DEVICE), 9)
    with interpreted():
        found = int8_parts.int8_product(
            maps.to(DEVICE), part, *moved, one.to(DEVICE), None, torch.float32, reading
        )
    plain = int8_parts.reference_product(
        maps, int8_parts.prepared(levels, 9), scale, zero, one, None, torch.float32, reading
    )
    for product in (found.cpu(), plain):
        assert product.shape == expected.shape
        assert (product.double() - expected).abs().max() < 1e-6 * expected.abs().max()


def test_what_a_card_lacks_is_said() -> None:
    from vqdq.kernels.triton.support import OPERATIONS, Card, refusal

    lacking = {
        capability: [op for op in OPERATIONS if refusal(op, Card(name="a", capability=capability))]
        for capability in ((7, 0), (7, 5), (8, 6), (8, 9), (9, 0), (12, 0))
    }
    assert lacking[(7, 0)] == list(OPERATIONS)
    assert lacking[(7, 5)] == ["int8_product", "fp8_product"]
    assert lacking[(8, 6)] == ["fp8_product"]  # Ada is the first with units for it
    assert [lacking[newer] for newer in ((8, 9), (9, 0), (12, 0))] == [[], [], []]
    assert "sm_75" in refusal("int8_product", Card(name="a", capability=(7, 5)))
    if DEVICE == "cpu":
        (row,) = [status for status in kernels.status() if status.op == "card"]
        assert row.backend == "none"
        assert "no NVIDIA card" in row.reason
