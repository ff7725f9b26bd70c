"""Convolutions in integers equal the definition, whatever their window, padding and scales."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.layers.test_execution import (
    AXES,
    QUICK,
    ROUNDING,
    SEEDS,
    Known,
    parts,
    quantized,
    some_grid,
)
from vqdq.activations.base import Grid, quantize
from vqdq.kernels.int8_products import support
from vqdq.layers import integer_groups
from vqdq.layers.execution import how
from vqdq.layers.integer import Window
from vqdq.layers.quantized import QuantizedConv2d


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Shape:
    height: int
    width: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    mode: str


PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))
SHAPES = st.builds(
    Shape,
    height=st.integers(6, 11),
    width=st.integers(6, 11),
    kernel=PAIR,
    stride=PAIR,
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    mode=st.sampled_from(("zeros", "zeros", "zeros", "reflect", "replicate", "circular")),
)


def convolved(
    layer: QuantizedConv2d, maps: torch.Tensor, grid: Grid
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the output and Σ |products| in float64 from whole codes."""
    levels, scales = parts(layer)
    scale, zero = (part.double() for part in grid.wide())
    rows = maps.flatten(2).transpose(1, 2)
    codes = quantize(rows, grid).double()
    bias = torch.zeros(len(levels)) if layer.bias is None else layer.bias.detach()
    out: list[torch.Tensor] = []
    for values, weight, added in (
        ((codes - zero) * scale, levels.double(), bias.double()),
        ((codes + zero.abs()) * scale, levels.double().abs(), bias.double().abs()),
    ):
        wide = values.expand(rows.shape).transpose(1, 2).reshape(maps.shape)
        scaled = weight * scales.double()[:, None, None, None]
        out.append(nn.Conv2d._conv_forward(layer, wide, scaled, added))  # pyright: ignore[reportPrivateUsage]
    # where a zero is added back on a border, no product stands for it: the largest sum bounds all
    return out[0], out[1].amax((2, 3), keepdim=True)


@QUICK
@given(
    axis=st.sampled_from(AXES),
    batch=st.integers(1, 3),
    channels=st.integers(1, 20),
    outputs=st.integers(1, 20),
    shape=SHAPES,
    grouped=st.booleans(),
    last=st.booleans(),
    zeros=st.booleans(),
    biased=st.booleans(),
    large=st.booleans(),
    seed=SEEDS,
)
def test_convolution_in_integers_equals_the_definition(
    axis: str,
    batch: int,
    channels: int,
    outputs: int,
    shape: Shape,
    grouped: bool,
    last: bool,
    zeros: bool,
    biased: bool,
    large: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups = 2 if grouped else 1
    layer = nn.Conv2d(
        channels * groups,
        outputs * groups,
        shape.kernel,
        shape.stride,
        shape.padding,
        shape.dilation,
        groups,
        biased,
        shape.mode,  # pyright: ignore[reportArgumentType]
    )
    maps = torch.randn(batch, channels * groups, shape.height, shape.width, generator=generator)
    if last:
        maps = maps.contiguous(memory_format=torch.channels_last)
    sizes = (batch, shape.height * shape.width, channels * groups)
    grid = some_grid(axis, sizes, 8, generator, zeros)
    packed = quantized(layer, Known(grid))
    assert isinstance(packed, QuantizedConv2d)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        if large:
            patch.setattr(integer_groups, "MOST_STACKED", 0)
        found = packed(maps)
    wanted, size = convolved(packed, maps, grid)
    assert found.shape == wanted.shape
    assert ((found.double() - wanted).abs() <= ROUNDING * size).all()
    assert packed.input is not None
    told = how(packed, packed.input)
    refused = grouped and axis in ("row", "rows", "group")
    outside = bool(((grid.zero < 0) | (grid.zero > 255)).any())
    if (grouped or axis == "group") and outside and any(shape.padding) and shape.mode == "zeros":
        refused = True
    if support()[0] != "onednn" and (grouped or axis == "group"):
        refused |= not Window.of(packed).is_product
    assert told.kind == ("simulated" if refused else "integer"), told
