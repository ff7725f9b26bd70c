"""8-bit codes: the compiled loops give the bits of plain torch, and those of the definition."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vqdq import kernels
from vqdq.activations.base import Grid, quantize, ranged
from vqdq.kernels import int8, int8_cpu, int8_reference
from vqdq.kernels.int8 import NO_BORDER, Border, Lines

QUICK = settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
SEEDS = st.integers(0, 2**31)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@st.composite
def some_lines(draw: st.DrawFn) -> Lines:
    """Draws rows or maps of any width and memory format, smoothed or rotated or neither."""
    generator = torch.Generator().manual_seed(draw(SEEDS))
    block = draw(st.sampled_from((0, 0, 1, 4, 16, 32)))
    channels = max(block, 1) * draw(st.integers(1, 3)) if block else draw(st.integers(1, 50))
    batch = draw(st.integers(1, 3))
    if draw(st.booleans()):
        sides = draw(st.integers(1, 9)), draw(st.integers(1, 9))
        values = torch.randn(batch, channels, *sides, generator=generator) * 3
        if draw(st.booleans()):
            values = values.contiguous(memory_format=torch.channels_last)
    else:
        values = torch.randn(batch, draw(st.integers(1, 40)), channels, generator=generator)
    values[..., :: draw(st.integers(1, 9))] *= 1000 if draw(st.booleans()) else 0.5
    if draw(st.booleans()):
        values = values.bfloat16()
    divisor, signs = torch.empty(0), torch.empty(0)
    if draw(st.booleans()):
        divisor = torch.rand(channels, generator=generator) + 0.1
    if block:
        signs = 1.0 - 2.0 * torch.randint(0, 2, (channels,), generator=generator)
    return Lines(values=values, divisor=divisor, signs=signs, block=block)


def rows_of(lines: Lines) -> torch.Tensor:
    """Returns what is quantized, [batch, positions, channels]."""
    values = lines.values.float()
    rows = values.flatten(2).transpose(1, 2) if lines.is_map else values
    rows = rows / lines.divisor if len(lines.divisor) else rows
    if not lines.block:
        return rows
    flat = (rows * lines.signs).reshape(-1, rows.shape[2])
    return kernels.hadamard(flat.contiguous(), lines.block).reshape(rows.shape)


@QUICK
@given(lines=some_lines(), bits=st.integers(4, 8))
def test_own_ranges_are_those_of_the_definition(lines: Lines, bits: int) -> None:
    rows = rows_of(lines)
    low, high, finite = int8_cpu.line_extremes(lines)
    assert finite
    assert torch.equal(low, rows.amin(2))
    assert torch.equal(high, rows.amax(2))
    codes, scale, zero, finite = int8_cpu.own_codes(lines, bits)
    assert finite
    wanted_scale, wanted_zero = ranged(low, high, bits)
    assert torch.equal(scale, wanted_scale)
    assert torch.equal(zero, wanted_zero)
    grid = Grid(bits=bits, axis="row", scale=scale, zero=zero)
    assert torch.equal(codes.reshape(rows.shape).float(), quantize(rows, grid))
    for found, known in zip(
        int8_cpu.own_codes(lines, bits), int8_reference.own_codes(lines, bits), strict=True
    ):
        assert torch.equal(torch.as_tensor(found), torch.as_tensor(known))


@QUICK
@given(
    lines=some_lines(),
    bits=st.integers(4, 8),
    axis=st.sampled_from(("tensor", "sample", "rows", "row")),
    zeros=st.booleans(),
    border=st.builds(Border, *[st.integers(0, 2)] * 4),
    seed=SEEDS,
)
def test_row_codes_are_those_of_the_definition(
    lines: Lines, bits: int, axis: str, zeros: bool, border: Border, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch, positions, channels = lines.sizes
    shape = {
        "tensor": (),
        "sample": (batch,),
        "rows": (1, positions),
        "row": (batch, positions),
    }[axis]
    low = torch.randn(shape, generator=generator) - 0.5
    scale, zero = ranged(low, low + 3, bits, with_zero=zeros)
    if not lines.is_map or "row" in axis or not zeros:
        border = NO_BORDER
    codes, finite = int8_cpu.row_codes(lines, scale, zero, bits, border)
    assert finite
    known, _ = int8_reference.row_codes(lines, scale, zero, bits, border)
    assert torch.equal(codes, known)
    wide = "row" if axis == "rows" else axis
    grid = Grid(bits=bits, axis=wide, scale=scale, zero=zero)  # pyright: ignore[reportArgumentType]
    wanted = quantize(rows_of(lines), grid)
    if lines.is_map:
        height, width = lines.values.shape[2:]
        inner = codes[:, border.top : border.top + height, border.left : border.left + width]
        outer = codes.long().sum() - inner.long().sum()
        around = codes[0, ..., 0].numel() - height * width
        samples = zero.expand(batch) if zero.ndim < 2 else torch.zeros(batch)
        assert int(outer) == int(samples.sum()) * around * channels
        codes = inner.reshape(wanted.shape)
    assert torch.equal(codes.float(), wanted)


@QUICK
@given(
    lines=some_lines(),
    groups=st.integers(1, 5),
    border=st.builds(Border, *[st.integers(0, 2)] * 4),
    seed=SEEDS,
)
def test_group_codes_are_those_of_the_definition(
    lines: Lines, groups: int, border: Border, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    channels = lines.sizes[2]
    border = border if lines.is_map else NO_BORDER
    index = torch.randint(0, groups, (channels,), generator=generator)
    low = torch.randn(groups, generator=generator) - 0.5
    scale, zero = ranged(low, low + 3, 8)
    order, counts = index.argsort(stable=True), index.bincount()
    edges = (0, *counts[counts > 0].cumsum(0).tolist())
    given_grid = (scale[index], zero[index], 8, order, edges, border)
    parts, finite = int8_cpu.group_codes(lines, *given_grid)
    assert finite
    known, _ = int8_reference.group_codes(lines, *given_grid)
    for found, wanted in zip(parts, known, strict=True):
        assert torch.equal(found, wanted)
    stack = (scale[index], zero[index], 8, index, groups, border)
    layers, finite = int8_cpu.stacked_codes(lines, *stack)
    assert finite
    assert torch.equal(layers, int8_reference.stacked_codes(lines, *stack)[0])
    assert torch.equal(layers.sum(0)[..., order], torch.cat(parts, -1).long())
    for group in range(groups):
        assert not layers[group][..., index != group].any()
    grid = Grid(bits=8, axis="group", scale=scale, zero=zero, index=index)
    wanted = quantize(rows_of(lines), grid)[..., order]
    together = torch.cat(parts, -1)
    if lines.is_map:
        height, width = lines.values.shape[2:]
        down = slice(border.top, border.top + height)
        together = together[:, down, border.left : border.left + width].reshape(wanted.shape)
    assert torch.equal(together.float(), wanted)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 17, 90])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kernel_reports_what_is_no_number(bad: float, place: int, dtype: torch.dtype) -> None:
    values = torch.randn(2, 7, 13).to(dtype)
    values.view(-1)[place] = bad
    lines, one, columns = Lines(values=values), torch.ones(()), torch.ones(13)
    for module in (int8_cpu, int8_reference):
        assert not module.line_extremes(lines)[-1]
        assert not module.own_codes(lines, 8)[-1]
        assert not module.row_codes(lines, one, one, 8, NO_BORDER)[-1]
        order = torch.arange(13)
        assert not module.group_codes(lines, columns, columns, 8, order, (0, 13), NO_BORDER)[-1]


def test_sums_become_outputs() -> None:
    generator = torch.Generator().manual_seed(3)
    sums = torch.randint(-(2**20), 2**20, (2, 9, 33), generator=generator).float()
    column = [torch.randn(33, generator=generator) for _ in range(3)]
    for shape in ((), (2,), (1, 9), (2, 9)):
        scale = torch.rand(shape, generator=generator)
        zero = torch.randint(-50, 300, shape, generator=generator).float()
        found = int8_cpu.scaled_rows(sums.clone(), scale, zero, *column)
        assert torch.equal(found, int8_reference.scaled_rows(sums.clone(), scale, zero, *column))
    scale, zero = torch.rand(4, generator=generator), torch.arange(4.0)
    grids = torch.randint(0, 4, (9,), generator=generator)
    places = torch.randperm(20, generator=generator)[:9]
    found, known = torch.zeros(20, 33), torch.zeros(20, 33)
    int8_cpu.add_rows(found, sums[0], scale, zero, grids, places, *column[:2])
    int8_reference.add_rows(known, sums[0], scale, zero, grids, places, *column[:2])
    assert torch.equal(found, known)
    several = torch.randn(4, 9, 33, generator=generator)
    given_scales = (several, scale, *column[:2])
    assert torch.equal(
        int8_cpu.summed_groups(*given_scales), int8_reference.summed_groups(*given_scales)
    )


def test_threads_change_nothing() -> None:
    generator = torch.Generator().manual_seed(4)
    lines = Lines(values=torch.randn(2, 96, 64, 40, generator=generator))
    one = [*int8_cpu.own_codes(lines, 8)[:3], *int8_cpu.line_extremes(lines)[:2]]
    torch.set_num_threads(5)
    five = [*int8_cpu.own_codes(lines, 8)[:3], *int8_cpu.line_extremes(lines)[:2]]
    assert all(torch.equal(a, b) for a, b in zip(one, five, strict=True))


def test_warm_compiles_each_loop_once() -> None:
    int8.warm()
    from vqdq.kernels import int8_lines, int8_sums

    for name in int8.OPERATIONS:
        module = int8_sums if hasattr(int8_sums, name) else int8_lines
        loop = getattr(module, "extremes" if name == "line_extremes" else name)
        assert len(loop.signatures) == 1, name
