"""Few rows times a trellis weight that is decoded in registers: it never exists in memory.

What few rows wait for is the weight, and a decoded one is written and read at 16 bits. Here its 2
to 6 bits are read once. The rotation goes from the weight to the rows, x Wᵀ = (x diag(signs) H)
levelsᵀ diag(scales), because H is its own transpose. Levels are integers of 8 bits, exact in the
units' 11; rows are the sum of two such numbers. So the weight is not rounded at all: the result is
nearer to the definition than with a weight in the dtype of the rows. Above `FEW_ROWS`, and where
there is no kernel, the weight is decoded and multiplied.
"""

from __future__ import annotations

import importlib

import torch
from torch.nn import functional

from vqdq.kernels import backend

OPERATION = "trellis_product"
FEW_ROWS = 32  # two tiles of the units' least height


def takes(rows: torch.Tensor) -> bool:
    """Returns whether rows [..., columns] are multiplied with a weight as it is decoded."""
    few = 0 < rows.shape[:-1].numel() <= FEW_ROWS
    return few and backend.on_card(rows) and not backend.refusal(OPERATION, rows)


def trellis_product(
    rows: torch.Tensor,
    codes: torch.Tensor,
    table: torch.Tensor,
    bits: int,
    scales: torch.Tensor,
    signs: torch.Tensor,
    block: int,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns rows times `kernels.trellis_weight` transposed, plus bias, [..., out].

    Sums are in float32; the result has the dtype of the rows. Fused, it is the product with the
    float32 weight to float32 rounding, before it is rounded to that dtype.

    Args:
        rows: [..., columns], of any strides.
        codes, table, bits, scales, signs, block: see `kernels.trellis_weight`.
        bias: [out] or None.
    """
    given = (codes, table, bits, scales, signs, block)
    if not takes(rows):
        weight = _run("trellis_weight", *given, rows.dtype)
        return functional.linear(rows, weight, bias)
    flat = rows.reshape(-1, rows.shape[-1]).float() * signs
    turned = _run("hadamard", flat, block) if block > 1 else flat
    module = importlib.import_module("vqdq.kernels.triton.few_rows")
    found = module.level_product(turned, codes, table, bits, scales, bias, rows.dtype)
    return found.reshape(*rows.shape[:-1], len(scales))


def _run(op: str, *args: object) -> torch.Tensor:
    return backend.run(op, "vqdq.kernels.cpu", "vqdq.kernels.reference", *args)
