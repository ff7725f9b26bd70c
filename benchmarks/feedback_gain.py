"""What error feedback gains on a covariance that is known, beside the closed form."""

from __future__ import annotations

import math
from typing import Any

import torch

from benchmarks.codecs import SIZE, gaussian
from benchmarks.timing import table
from vqdq import codecs
from vqdq.codecs import feedback
from vqdq.codecs.base import InputStats, Packed

DAMPING = 0.01
SETTINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("uniform", {"bits": bits}) for bits in (2, 3, 4)),
    ("uniform", {"bits": 3, "group_size": 64}),
    ("gptq", {"bits": 3}),
    ("gptq", {"bits": 4}),
    ("nf4", {}),
    *(("lloyd_max", {"bits": bits}) for bits in (2, 3, 4)),
    *(("trellis", {"bits": bits, "rotation": 0}) for bits in (2, 3, 4)),
    ("trellis", {"bits": 3, "state_bits": 10, "rotation": 0}),
    ("additive", {"num_codebooks": 3}),
)


def covariance(size: int) -> torch.Tensor:
    """Returns Q diag(1/i) Qᵀ for a random rotation Q, float32 [size, size]."""
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    powers = 1 / torch.arange(1, size + 1, dtype=torch.float64)
    return ((basis * powers) @ basis.T).float()


def run(size: int = SIZE) -> str:
    """Returns the table as Markdown."""
    weight, hessian = gaussian(size), covariance(size)
    plain = InputStats(hessian=torch.eye(size), damping=DAMPING)  # nothing to feed back
    aware = InputStats(hessian=hessian, damping=DAMPING)
    rows: list[list[str]] = []
    for method, values in SETTINGS:
        codec = codecs.create(method, **values)
        packed = [codec.encode(weight, stats=stats) for stats in (plain, aware)]
        before, after = (_loss(weight, item, hessian) for item in packed)
        gain, predicted = 10 * math.log10(before / after), _predicted(method, values, hessian)
        rows.append(
            [
                method,
                ", ".join(f"{key}={value}" for key, value in values.items()) or "defaults",
                f"{packed[1].storage.bits_per_weight:.3f}",
                f"{before:.5f}",
                f"{after:.5f}",
                f"{gain:.2f}",
                f"{predicted:.2f}",
                f"{100 * (10 ** ((gain - predicted) / 10) - 1):+.1f} %".replace("-", "−"),
            ]
        )
        print(rows[-1], flush=True)
    head = ["method", "settings", "bits", "loss without", "loss with feedback", "gain, dB"]
    head += ["closed form, dB", "against it"]
    return table(head, rows)


def _predicted(method: str, values: dict[str, Any], hessian: torch.Tensor) -> float:
    """Returns mean(R_jj²) / mean(H_jj) in dB, in the order in which the method takes columns."""
    order = torch.arange(len(hessian))
    if method not in ("gptq", "additive"):
        order = feedback.strongest_first(hessian, values.get("group_size", 0))
    ordered = hessian[order][:, order]
    return -10 * math.log10(feedback.factor(ordered, DAMPING).predicted_gain)


def _loss(weight: torch.Tensor, packed: Packed, hessian: torch.Tensor) -> float:
    """Returns tr(Δ H Δᵀ) / tr(W H Wᵀ)."""
    exact, seen = weight.double(), hessian.double()
    lost = exact - packed.decode().double()
    return float(((lost @ seen) * lost).sum() / ((exact @ seen) * exact).sum())
