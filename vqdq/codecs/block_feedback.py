"""Error feedback by groups of columns, and codebooks refitted under the same Hessian.

`feedback` makes columns good for the loss of earlier ones; a vector quantizer rounds a group G of
columns at once. With H = R Rᵀ, tr(Δ H Δᵀ) = ‖Δ R‖², and the columns of G in Δ R are

    Σ_{i<G} Δ_i R_iG + Δ_G R_GG = (t_G − ŵ_G) R_GG,    t_G = w_G + Σ_{i<G} Δ_i R_iG R_GG⁻¹:

G is encoded towards t_G in the metric R_GG (QuIP#, arXiv 2402.04396, section 4.2, rounds the same
targets without the metric). A code that is fine enough loses D·dim·det(R_GG)^(2/dim) on it, the
geometric mean of its R_jj²: never more than feedback by columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vqdq import kernels
from vqdq.codecs.feedback import Feedback
from vqdq.kernels.threads import one_thread


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockFeedback:
    """The factor of a damped Hessian by groups of columns.

    Attributes:
        unit: R_iG R_GG⁻¹, float32 [in, in]; what an error of column i adds to a later group.
        metric: R_GG with its longest column scaled to 1, float32 [groups, size, size].
        predicted_gain: mean of det(R_GG)^(2/size) over the mean of diag H before damping.
    """

    unit: torch.Tensor
    metric: torch.Tensor
    predicted_gain: float


def by_groups(feedback: Feedback, size: int) -> BlockFeedback:
    """Returns the factor for groups of `size` columns, which divides their number."""
    width = len(feedback.unit)
    places = torch.arange(width).reshape(-1, size)
    squares = feedback.unit[places[:, :, None], places[:, None, :]].double()  # [groups, size, size]
    eye = torch.eye(size, dtype=torch.float64).expand_as(squares)
    inverse = torch.linalg.solve_triangular(squares, eye, upper=True, unitriangular=True).float()
    unit = torch.empty_like(feedback.unit)
    with one_thread():
        for group, columns in enumerate(places):
            block = slice(int(columns[0]), int(columns[-1]) + 1)
            unit[:, block] = feedback.unit[:, block] @ inverse[group]
    gains = feedback.gains.reshape(-1, size)
    metric = squares * gains.sqrt()[:, None, :]
    longest = metric.norm(dim=1).amax(dim=1)
    volume = float(gains.log().mean(dim=1).exp().mean())
    return BlockFeedback(
        unit=unit,
        metric=(metric / longest[:, None, None]).float(),
        predicted_gain=volume / feedback.power if feedback.power > 0 else 1.0,
    )


def weighted_loss(
    weight: torch.Tensor, decoded: torch.Tensor, hessian: torch.Tensor, damping: float
) -> float:
    """Returns tr(Δ H Δᵀ) with the damping added, Δ = weight − decoded."""
    error = weight - decoded
    seen = _times(error, hessian, damping)
    return float((error.double() * seen.double()).sum())


def refit(
    weight: torch.Tensor,
    codes: torch.Tensor,
    scales: torch.Tensor,
    values: torch.Tensor,
    hessian: torch.Tensor,
    damping: float,
    steps: int = 4,
) -> torch.Tensor:
    """Returns codebooks with a lower tr(Δ H Δᵀ) for fixed codes and scales, float32 like `values`.

    Conjugate gradients on the least-squares problem, preconditioned by its diagonal; VQDM takes
    100 Adam steps (arXiv 2409.00492, section 3). One step costs one product of the weight with H.

    Args:
        weight: float32 [rows, columns]; `codes`: uint8 [rows*groups, M]; `scales`: float32 [rows].
        values: the present codebooks, float32 [M, K, dim].
    """
    groups, shape = (
        weight.shape[1] // values.shape[2],
        (values.shape[0], values.shape[1], values.shape[2]),
    )

    def decoded(books: torch.Tensor) -> torch.Tensor:
        return kernels.additive_decode(codes, books, scales, groups)

    def slope(error: torch.Tensor) -> torch.Tensor:
        seen = _times(error, hessian, damping)
        return kernels.additive_gradient(codes, seen, scales, shape).double()

    power = hessian.diagonal().float() + damping * hessian.diagonal().float().mean()
    diagonal = kernels.additive_gradient(codes, scales[:, None] * power, scales, shape).double()
    inverse = torch.where(diagonal > 0, 1 / diagonal, 0.0)
    found = values.double()
    residual = slope(weight - decoded(values))
    turned = inverse * residual
    direction, size = turned, float((residual * turned).sum())
    enough = 1e-10 * size  # float32 products: below it steps are noise
    for _ in range(steps):
        ahead = slope(decoded(direction.float()))
        curvature = float((direction * ahead).sum())
        if size <= enough or curvature <= 0:
            break
        length = size / curvature
        found = found + length * direction
        residual = residual - length * ahead
        turned = inverse * residual
        after = float((residual * turned).sum())
        direction, size = turned + after / size * direction, after
    return found.float()


def _times(matrix: torch.Tensor, hessian: torch.Tensor, damping: float) -> torch.Tensor:
    with one_thread():
        product = matrix @ hessian.float()
    return product + float(damping * hessian.diagonal().double().mean()) * matrix
