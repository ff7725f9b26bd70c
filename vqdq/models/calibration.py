"""Calibration: what the layers of the full-precision model are given, as moments.

The recorded calls of the denoiser are made again with hooks; each call gives every group of layers
a few rows (`gathering`). In memory it is `collect`; `calibrate_folder` keeps the same on the disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from vqdq.calibration import CalibrationParams
from vqdq.codecs.base import InputStats
from vqdq.models.calibration_folder import CalibrationResult, calibrate_folder, open_calibration
from vqdq.models.effects import step_weights
from vqdq.models.gathering import moments_of
from vqdq.models.input_groups import InputGroup, Wave, input_groups, plan_waves, waves_in_words
from vqdq.models.trajectory import Trajectories
from vqdq.progress import Report, silent

__all__ = [
    "CalibrationResult",
    "InputGroup",
    "Wave",
    "calibrate_folder",
    "collect",
    "input_groups",
    "open_calibration",
    "plan_waves",
    "step_weights",
    "waves_in_words",
]


def collect(
    module: nn.Module,
    trajectories: Trajectories,
    layers: Iterable[str],
    params: CalibrationParams,
    *,
    report: Report = silent,
    weights: Sequence[float] | None = None,
) -> dict[str, InputStats]:
    """Returns the moments of the inputs of `layers`, in one pass; layers that share inputs share H.

    Layers without one input matrix (grouped convolutions) or that the calls never run are left out.

    Args:
        module: the denoiser that made the calls, in full precision.
        weights: of each step, for `params.weighting` "effect" (`step_weights`); None counts all
            alike.
        report: stage "calibrate", one unit a call; may raise `Cancelled`.

    Raises:
        UserError: an input that is not finite; the layer is named.
    """
    wanted = set(layers)
    groups = [
        group
        for group in input_groups(module, trajectories.calls)
        if not wanted.isdisjoint(group.layers)
    ]
    found = moments_of(module, trajectories, groups, params, report=report, weights=weights)
    stats: dict[str, InputStats] = {}
    for group in groups:
        moments = found.pop(group.name)
        shared = InputStats(
            hessian=moments.hessian(),
            mean=moments.mean(),
            num_samples=moments.rows,
            damping=params.damping,
        )
        stats |= {name: shared for name in group.layers if name in wanted}
    return stats
