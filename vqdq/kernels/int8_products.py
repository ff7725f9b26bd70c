"""Products of unsigned codes and int8 levels summed in int32, by oneDNN or by torch's own product.

Activations are always unsigned: with signed ones oneDNN takes a reference path on some processors,
thousands of times slower. On processors without VNNI products of unsigned and signed bytes are
added in pairs in 16 bits, which can overflow; so extreme values are tried once, and what is not
exact here is not used. Weights are packed once, in the layout of the processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch

Backend = Literal["onednn", "torch", ""]
_ops: Any = torch.ops.onednn


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearLevels:
    """Levels of a linear layer, packed.

    Attributes:
        backend: which product takes them.
        packed: opaque; a part of the columns each.
        ones, zeros: scales 1 and zeros 0 of the output columns, as oneDNN asks for them.
    """

    backend: Backend
    packed: torch.Tensor
    ones: torch.Tensor
    zeros: torch.Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvolutionLevels:
    """Levels of a convolution, packed by oneDNN.

    Attributes:
        packed: opaque.
        stride, dilation, groups: of the convolution; padding is in the codes already.
        ones, zeros: as in `LinearLevels`.
    """

    packed: torch.Tensor
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    ones: torch.Tensor
    zeros: torch.Tensor


def pack_linear(levels: torch.Tensor, backend: Backend | None = None) -> LinearLevels:
    """Returns int8 levels [out, in] packed for `linear`, by default by what `support` chose."""
    chosen = support()[0] if backend is None else backend
    packed = levels.contiguous()
    if chosen == "onednn":
        packed = _ops.qlinear_prepack(packed, None)
    ones, zeros = torch.ones(len(levels)), torch.zeros(len(levels), dtype=torch.int32)
    return LinearLevels(backend=chosen, packed=packed, ones=ones, zeros=zeros)


def linear(
    codes: torch.Tensor,
    levels: LinearLevels,
    *,
    scale: float = 1.0,
    zero: int = 0,
    column_scales: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    onto: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Returns scale · column_scales · Σ (code − zero) level + bias, float32 [rows, out].

    Args:
        codes: uint8 [rows, in], contiguous.
        zero: 0 … 255.
        column_scales, bias: float32 [out]; None is 1 and 0.
        onto: what the products are added to instead of the bias, perhaps in place.
        dtype: of the output, rounded once from float32; bfloat16 is written as such.
    """
    if levels.backend == "onednn":
        scales = levels.ones if column_scales is None else column_scales
        given = (codes, scale, zero, levels.packed, scales, levels.zeros)
        form = (1.0, 0, torch.float32)
        if onto is None:
            form = (1.0, 0, _written(dtype))
            return _ops.qlinear_pointwise(*given, bias, *form, "none", [], "")
        added = (1.0, 0, "sum", 1.0, "none", [], "")
        return _ops.qlinear_pointwise.binary(*given, onto, None, *form, *added)
    sums = torch._int_mm(codes, levels.packed.T)  # pyright: ignore[reportPrivateUsage]
    if zero:
        sums -= zero * levels.packed.sum(1, dtype=torch.int32)
    out = sums.float()
    if scale != 1.0 or column_scales is not None:
        out *= scale * (levels.ones if column_scales is None else column_scales)
    other = bias if onto is None else onto
    return out if other is None else out.add_(other)


def _written(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.bfloat16 else torch.float32


def pack_convolution(
    levels: torch.Tensor, stride: Sequence[int], dilation: Sequence[int], groups: int
) -> ConvolutionLevels:
    """Returns int8 levels [out, channels / groups, height, width] packed for `convolution`."""
    ones, zeros = torch.ones(len(levels)), torch.zeros(len(levels), dtype=torch.int32)
    steps, spread = (stride[0], stride[1]), (dilation[0], dilation[1])
    packed = _ops.qconv_prepack(
        levels.contiguous(), ones, 1.0, 0, list(steps), [0, 0], list(spread), groups, None
    )
    return ConvolutionLevels(
        packed=packed, stride=steps, dilation=spread, groups=groups, ones=ones, zeros=zeros
    )


def convolution(
    codes: torch.Tensor,
    levels: ConvolutionLevels,
    *,
    scale: float = 1.0,
    column_scales: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    onto: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Returns scale · column_scales · Σ code level + bias, float32 [batch, tall, wide, out].

    No zero and no padding: oneDNN is 2 to 4 times slower where it makes up for them (measured), and
    a border of codes that stand for 0 does the same.

    Args:
        codes: uint8 [batch, height, width, channels], contiguous.
        column_scales, bias: float32 [out]; None is 1 and 0.
        onto, dtype: as for `linear`.
    """
    scales = levels.ones if column_scales is None else column_scales
    given = (codes.permute(0, 3, 1, 2), scale, 0, levels.packed, scales, levels.zeros)
    window = (levels.stride, (0, 0), levels.dilation, levels.groups)
    form = (1.0, 0, torch.float32)
    out: torch.Tensor
    if onto is None:
        form = (1.0, 0, _written(dtype))
        out = _ops.qconv_pointwise(*given, bias, *window, *form, "none", [], "")
    else:
        sums, added = onto.permute(0, 3, 1, 2), (1.0, 0, "sum", 1.0, "none", [], "")
        out = _ops.qconv2d_pointwise.binary(*given, sums, None, *window, *form, *added)
    return out.permute(0, 2, 3, 1)


@cache
def support() -> tuple[Backend, str]:
    """Returns what computes integer products on this machine, "" for nothing, and why."""
    first = _fault("onednn")
    if not first:
        return "onednn", "oneDNN, exact on extreme values"
    second = _fault("torch")
    if not second:
        return "torch", f"torch's own product, slower: oneDNN {first}"
    return "", f"no exact product of bytes: oneDNN {first}; torch {second}"


def _fault(backend: Backend) -> str:
    """Returns what is wrong with a product on extreme codes and levels; "" when it is exact.

    Equal signs side by side make the largest sums of pairs, where 16 bits overflow.
    """
    codes = torch.full((33, 96), 255, dtype=torch.uint8)
    codes[1::3, ::2] = 0
    levels = torch.full((40, 96), 127, dtype=torch.int8)
    levels[::2] = -128
    levels[::5, ::3] = -127
    exact = codes.double() @ levels.double().T
    try:
        sums = linear(codes, pack_linear(levels, backend))
        agrees = torch.equal(sums.double(), exact)
        if backend == "onednn" and agrees:
            maps = codes.reshape(1, 33, 3, 32)
            kernel = levels.reshape(40, 1, 3, 32).permute(0, 3, 1, 2)
            out = convolution(maps, pack_convolution(kernel, (1, 1), (1, 1), 1))
            sides = maps.permute(0, 3, 1, 2).double(), kernel.double()
            wanted = torch.nn.functional.conv2d(*sides).permute(0, 2, 3, 1)
            agrees = torch.equal(out.double(), wanted)
    except (RuntimeError, AttributeError) as error:
        return f"cannot be used ({str(error).partition(chr(10))[0]})"
    return "" if agrees else "overflows on this processor"
