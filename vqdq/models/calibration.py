"""Calibration: what the layers of the full-precision model are given, as moments.

The recorded calls of the denoiser are made again with hooks; each call gives every group of layers
a few rows (`gathering`). In memory it is `collect`; `calibrate_folder` keeps the same on the disk.
"""

from __future__ import annotations

from vqdq.models.calibration_folder import (
    CalibrationResult,
    calibrate_folder,
    input_ranges,
    open_calibration,
)
from vqdq.models.effects import step_weights
from vqdq.models.gathering import collect
from vqdq.models.input_groups import InputGroup, Wave, input_groups, plan_waves, waves_in_words

__all__ = [
    "CalibrationResult",
    "InputGroup",
    "Wave",
    "calibrate_folder",
    "collect",
    "input_groups",
    "input_ranges",
    "open_calibration",
    "plan_waves",
    "step_weights",
    "waves_in_words",
]
