"""One number for each half, layer and step: what the map of all layers is coloured by."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from vqdq.capture.sketch import Sketch

Floats = npt.NDArray[np.float32]
PLAIN_RATIO = 1000
"""A peak is never said to be more than this many times the median, see `Scalars.peak_ratio`."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scalars:
    """Arrays [halves, layers, steps], NaN for what was not seen.

    Attributes:
        absmax, minimum, maximum: of the layer's input; exact.
        mean, rms, kurtosis: of all its values, or of evenly many of a large one
            (`streams.COUNTED`); so are the quantiles and the outliers.
        median, p99, p9999: quantiles of the magnitude, estimated from bins.
        outliers: share of values with |x| >= 6; `nonfinite`: how many were NaN or infinite.
        channel_spread, position_spread: DGQ's D (arXiv 2501.04304, section 4.1).
        clipped: share of values beyond the quantizer's levels; `used`: share of its codes that
            occur; NaN for an input that stays in 16 bits.
        output_energy: ‖y‖²; `output_sketch`: [halves, layers, steps, Sketch.WIDTH].
        paired_signal, paired_error: ‖y‖² and ‖y − ŷ‖² of outputs for the same model inputs
            (`vqdq.capture.pairing`).
    """

    absmax: Floats
    minimum: Floats
    maximum: Floats
    mean: Floats
    rms: Floats
    median: Floats
    p99: Floats
    p9999: Floats
    kurtosis: Floats
    outliers: Floats
    nonfinite: Floats
    channel_spread: Floats
    position_spread: Floats
    clipped: Floats
    used: Floats
    output_energy: Floats
    output_sketch: Floats
    paired_signal: Floats
    paired_error: Floats

    @classmethod
    def empty(cls, *, halves: int, layers: int, steps: int) -> Self:
        """Returns scalars that are all NaN: not seen."""
        shape = (halves, layers, steps)
        names = [field.name for field in dataclasses.fields(cls)]
        arrays: dict[str, Floats] = {
            name: np.full(
                (*shape, Sketch.WIDTH) if name == "output_sketch" else shape, np.nan, np.float32
            )
            for name in names
        }
        return cls(**arrays)

    @property
    def peak_ratio(self) -> Floats:
        """Largest over median magnitude, 1000 at most; how far the outliers stand out.

        Beyond 1000 the median is zero for all purposes (inputs after a SiLU that is mostly shut).
        """
        floor = np.maximum(self.absmax / PLAIN_RATIO, 1e-30)  # of zeros: 0
        return (self.absmax / np.maximum(self.median, floor)).astype(np.float32)

    @property
    def tail_ratio(self) -> Floats:
        """99.99th over 99th percentile of the magnitude: how long the tail is."""
        return (self.p9999 / np.maximum(self.p99, 1e-12)).astype(np.float32)

    @property
    def empty_share(self) -> Floats:
        """Share of the quantizer's codes that never occur."""
        return (1 - self.used).astype(np.float32)

    @property
    def paired_sqnr_db(self) -> npt.NDArray[np.float64]:
        """10·log10(‖y‖² / ‖y − ŷ‖²) for the same model inputs, in dB; NaN where not paired."""
        with np.errstate(divide="ignore"):
            signal = np.log10(self.paired_signal.astype(np.float64))
            return 10 * (signal - np.log10(self.paired_error.astype(np.float64)))
