"""Products of 8-bit floats (e4m3) with their scales: linear layers and convolutions.

y = Σ_t s_t (q_t Ŵ_tᵀ) over the taps t of a convolution, with a scale for each row of codes (a
pixel, a sample, the whole input) and one for each output. Codes and levels are OCP e4m3
(Micikevicius et al., arXiv 2209.05433, section 3): 4 bits of exponent, 3 of mantissa, ±448 at most.
That is 4 significant bits where int8 has 7, but no zero points and a range that outliers do not use
up. A weight whose levels are int8 is rounded once more. Products of two codes are exact in float32;
sums are the definition's to float32 rounding, except on Hopper's units, which keep about 14 bits of
a sum (DeepSeek-V3, arXiv 2412.19437, section 3.3.2): there for 64 products at most.

Who computes it on a card with such units (Ada, sm_89, and later): torch's own product
(`torch.nn.functional.scaled_mm`) for many rows of a linear layer in bfloat16, Triton for the rest.
Older cards multiply the same values in fp16, which holds them exactly, and sum in float32.
"""

from __future__ import annotations

import importlib

import torch
from torch.nn import functional

from vqdq.kernels import backend, int8_reference
from vqdq.kernels.int8 import SMALLEST_SCALE, Lines
from vqdq.kernels.int8_parts import Levels, Reading, reference_product, wide_grid
from vqdq.kernels.triton import support

ROWS, OPERATION = "fp8_rows", "fp8_product"
FORMAT = torch.float8_e4m3fn
LARGEST = 448.0


def fp8_rows(lines: Lines) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns e4m3 codes, channels last, and a scale for each row, float32 [batch, positions].

    A row's scale takes its largest magnitude to 448. Codes are the row times the float32 reciprocal
    of the scale, to the nearest, ties to even. A row that is not finite has the scale NaN.
    """
    if backend.on_card(lines.values) and not backend.refusal(ROWS, lines.values):
        module = importlib.import_module("vqdq.kernels.triton.floats")
        return module.fp8_rows(lines.on(lines.values.device))
    return reference_rows(lines)


def reference_rows(lines: Lines) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what `fp8_rows` is to compute."""
    codes, scale = rounded(int8_reference.rows_of(lines))
    if lines.is_map:
        batch, channels, height, width = lines.values.shape
        codes = codes.reshape(batch, height, width, channels)
    return codes, scale


def scales_of(rows: torch.Tensor) -> torch.Tensor:
    """Returns the scales of float32 rows [..., columns], float32 [...], see `fp8_rows`."""
    scale = (rows.abs().amax(-1) / LARGEST).clamp_min(SMALLEST_SCALE)
    return torch.where(torch.isfinite(rows).all(-1), scale, torch.nan)


def codes_of(rows: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Returns float32 rows as e4m3; their scales broadcast over them."""
    return (rows * scale.reciprocal()).clamp(-LARGEST, LARGEST).to(FORMAT)


def rounded(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns float32 rows [..., columns] as e4m3 and their scales [...]."""
    scale = scales_of(rows)
    return codes_of(rows, scale[..., None]), scale


def rounded_weight(weight: torch.Tensor, taps: int = 1) -> tuple[Levels, torch.Tensor]:
    """Returns a weight [out, taps * channels] as e4m3, and scales of the outputs, float32 [out]."""
    levels, scales = rounded(weight.float())
    return prepared(levels, taps), scales


def prepared(levels: torch.Tensor, taps: int) -> Levels:
    """Returns e4m3 levels [out, taps * channels] as `fp8_product` reads them."""
    outputs, device = len(levels), levels.device
    apart = levels.reshape(outputs, taps, -1)
    return Levels(
        levels=apart.contiguous(),
        sums=torch.empty(0, outputs, device=device),
        edges=torch.tensor([0, apart.shape[2]], dtype=torch.int32, device=device),
        source=torch.empty(0, dtype=torch.int64, device=device),
    )


def fp8_product(
    codes: torch.Tensor,
    levels: Levels,
    scale: torch.Tensor,
    column_scales: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    reading: Reading | None = None,
) -> torch.Tensor:
    """Returns Σ_t s_t codes_t levels_tᵀ · column_scales + bias, in `dtype`.

    Args:
        codes: e4m3 [batch, positions, channels], or [batch, height, width, channels] with
            `reading`; the output has the same form.
        levels: of `rounded_weight`.
        scale: float32 [], [batch], [1, positions] or [batch, positions].
        column_scales: float32 [out]; bias: [out].
    """
    read = Reading() if reading is None else reading
    given = (codes, levels, scale, None, column_scales, bias, dtype, read)
    if not backend.on_card(codes):
        return reference_product(*given)
    if backend.refusal(OPERATION, codes):
        return reference_product(*given, wide=torch.float16)
    if prefers_library(codes, levels, bias, dtype) and not support.library_fault(codes.device):
        return library_product(codes, levels, scale, column_scales, bias)
    module = importlib.import_module("vqdq.kernels.triton.products")
    return module.product(*given)


def prefers_library(
    codes: torch.Tensor, levels: Levels, bias: torch.Tensor | None, dtype: torch.dtype
) -> bool:
    """Returns whether torch's own product takes these sizes, and is given them: many rows
    (`support.LIBRARY_ROWS`) of a linear layer, sides that 16 divides, an output in bfloat16.
    """
    outputs, taps, channels = levels.levels.shape
    many = codes.ndim == 3 and taps == 1 and codes.shape[0] * codes.shape[1] >= support.LIBRARY_ROWS
    written = dtype == torch.bfloat16 and (bias is None or bias.dtype == dtype)
    return many and written and channels % 16 == 0 and outputs % 16 == 0


def library_product(
    codes: torch.Tensor,
    levels: Levels,
    scale: torch.Tensor,
    column_scales: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Returns `fp8_product` of a linear layer in bfloat16 by torch's own product."""
    batch, positions, channels = codes.shape
    rows = wide_grid(scale.float()).expand(batch, positions, 1).reshape(-1, 1).contiguous()
    found = functional.scaled_mm(
        codes.reshape(-1, channels),
        levels.levels[:, 0].T,
        rows,
        functional.ScalingType.RowWise,
        column_scales[None].float(),
        functional.ScalingType.RowWise,
        bias=bias,
        output_dtype=torch.bfloat16,
    )
    return found.view(batch, positions, -1)
