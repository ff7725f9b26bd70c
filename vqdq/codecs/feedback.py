"""Error feedback: what one column's rounding lost is made good by the columns after it.

GPTQ (arXiv 2210.17323, section 3) and LDLQ (QuIP, arXiv 2307.13304, section 3) are the same
procedure. With H = R Rᵀ and R upper triangular, tr(Δ H Δᵀ) = ‖Δ R‖², and column j of Δ R holds only
the errors of columns up to j. So column j is rounded towards

    w_j + Σ_{i<j} Δ_i R_ij / R_jj,        Δ_i = w_i − ŵ_i,

and what remains is Σ_j R_jj² ‖e_j‖², e_j being the error of rounding that target. R_jj = 1/U_jj for
the U of GPTQ (H⁻¹ = Uᵀ U), but R needs one factorisation and no inverse.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vqdq.errors import UserError

_WIDEST_DOUBLE = 8192  # columns; beyond, a float64 factor would take more than 0.5 GB


@dataclass(frozen=True, kw_only=True, slots=True)
class Feedback:
    """The factor of a damped Hessian.

    Attributes:
        unit: R_ij / R_jj, float32 [in, in], upper triangular with ones on the diagonal.
        gains: R_jj², float64 [in]: what a squared error of column j costs.
        power: mean(diag H) of the Hessian that was given, before damping.
    """

    unit: torch.Tensor
    gains: torch.Tensor
    power: float

    @property
    def predicted_gain(self) -> float:
        """mean(R_jj²) / mean(H_jj): feedback's share of the loss of independent equal errors."""
        return float(self.gains.mean()) / self.power if self.power > 0 else 1.0


def factor(hessian: torch.Tensor, damping: float) -> Feedback:
    """Returns the factor of H + damping·mean(diag H)·I.

    Args:
        hessian: E[x xᵀ], [in, in], symmetric and positive semidefinite.
        damping: share of the mean diagonal; 0.1 suits 6 samples a channel.

    Raises:
        UserError: the damped matrix is not positive definite.
    """
    wide = hessian.shape[0] > _WIDEST_DOUBLE
    exact = hessian.detach().to("cpu", torch.float32 if wide else torch.float64)
    power = float(exact.diagonal().mean())
    if power == 0:  # no input ever: every rounding is as good, and nothing is fed back
        ones = torch.ones(len(exact), dtype=torch.float64)
        return Feedback(unit=torch.eye(len(exact)), gains=ones, power=0.0)
    flipped = exact.flip(0, 1)  # a fresh copy
    flipped.diagonal().add_(damping * power)
    lower, failed = torch.linalg.cholesky_ex(flipped)
    if int(failed):
        raise UserError(
            "the Hessian is singular.",
            remedy="Raise the damping (0.1 suits most layers), or calibrate on more prompts.",
        )
    upper = lower.flip(0, 1)
    diagonal = upper.diagonal().clone()
    unit = (upper / diagonal[None, :]).float()
    return Feedback(unit=unit, gains=diagonal.double().square(), power=power)
