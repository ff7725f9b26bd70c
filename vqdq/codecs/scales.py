"""Row scales in fp16: fitted by least squares, safe for zero rows, loud where fp16 overflows."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vqdq.errors import UserError
from vqdq.kernels.threads import one_thread

LARGEST = torch.finfo(torch.float16).max
_BLOCK = 1 << 19  # weights of which a float64 copy exists at a time, 4 MB: cached
_UNSEEN = 1e-6  # share of an average direction's power, near the rounding of float32 products


def row_blocks(weight: torch.Tensor) -> Iterator[slice]:
    """Yields runs of rows that cover a matrix, so that no float64 copy of all of it is needed."""
    rows, columns = weight.shape
    step = max(16, _BLOCK // max(1, columns))
    return (slice(first, min(first + step, rows)) for first in range(0, rows, step))


def row_rms(weight: torch.Tensor) -> torch.Tensor:
    """Returns the root mean square of every row, float32 [rows]; 1e30 does not overflow it."""
    return torch.cat(
        [weight[part].double().square_().mean(dim=1).sqrt().float() for part in row_blocks(weight)]
    )


def fitted_scales(
    weight: torch.Tensor,
    levels: torch.Tensor,
    hessian: torch.Tensor | None = None,
    damping: float = 0.0,
) -> torch.Tensor:
    """Returns argmin_s (w_r − s·l_r) H (w_r − s·l_r)ᵀ for every row r, float32 [rows].

    s = w H lᵀ / l H lᵀ, products in float32 and their sums in float64; plain least squares where
    the inputs do not see a row, 0 where its levels are all 0. Without `hessian` H is the identity
    and everything float64. The result does not depend on the number of threads.

    Args:
        weight: float32 [rows, columns].
        levels: what it was rounded to before scaling, same shape.
        hessian: E[x xᵀ], symmetric positive semidefinite [columns, columns], or None.
        damping: share of mean(diag H) added to its diagonal, as when the weight was rounded.
    """
    seen, strength = None, 0.0
    if hessian is not None:
        with one_thread():
            seen = levels.float() @ hessian.float()  # l H
        strength = float(hessian.diagonal().double().mean())
    found: list[torch.Tensor] = []
    for part in row_blocks(weight):
        exact, rounded = weight[part].double(), levels[part].double()
        own = rounded.square().sum(dim=1)
        product, power = (exact * rounded).sum(dim=1), own
        if seen is not None:
            damped = seen[part].double() + damping * strength * rounded
            under = (rounded * damped).sum(dim=1)
            shows = under > _UNSEEN * strength * own
            product = torch.where(shows, (exact * damped).sum(dim=1), product)
            power = torch.where(shows, under, power)
        scale = torch.where(power > 0, product / power.clamp_min(1e-300), 0.0)
        found.append(scale.float())
    return torch.cat(found)


def to_half(scales: torch.Tensor) -> torch.Tensor:
    """Returns scales as float16; below 6e-8 they become 0 and their row decodes to zeros.

    Raises:
        UserError: a scale beyond 65504, the largest number of 16-bit floating point.
    """
    largest = float(scales.abs().max())
    if largest > LARGEST:
        raise UserError(
            f"a scale of {largest:.3g} does not fit in 16 bits (largest 65504).",
            remedy="Check the checkpoint, or keep this layer in 16 bits.",
        )
    return scales.half()


def unit_rows(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Returns weight / scales by row, zeros where the scale is 0, float32 [rows, columns]."""
    safe = torch.where(scales > 0, scales, torch.ones_like(scales)).double()
    unit = torch.empty(weight.shape, dtype=torch.float32)
    for part in row_blocks(weight):
        scaled = weight[part].double().div_(safe[part, None])
        unit[part] = torch.where(scales[part, None] > 0, scaled, 0.0)
    return unit
