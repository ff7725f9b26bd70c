"""How far a variant strays from the reference, step by step: on its way and on its own.

Teacher-forced, both predict from the latents of the reference, so a step shows what the change
costs there. Free-running, each follows its own latents from the same noise, and errors feed back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

import vqdq.capture.archive as archive

Floats = npt.NDArray[np.float64]
_KIND, _VERSION = "trajectory", 1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrajectoryRecord:
    """One variant against the reference at each sampler step.

    Attributes:
        label: what the variant is called; `samples`: pictures behind every number.
        timesteps: of each step.
        forced_sqnr_db, free_sqnr_db: of the noise predictions, 10 log10(Σ‖ε‖² / Σ‖ε − ε̂‖²) over
            the samples, [steps]; inf when equal.
        forced_cosine, free_cosine: of the latents after the step, mean of the samples, [steps].
            NaN where it was not recorded.
        context: what the caller wanted remembered.
    """

    label: str
    samples: int
    timesteps: tuple[float, ...]
    forced_sqnr_db: Floats
    free_sqnr_db: Floats
    forced_cosine: Floats
    free_cosine: Floats
    context: Mapping[str, str | int | float]

    def save(self, path: Path) -> None:
        """Writes the record to one `.npz` file, atomically."""
        entry, arrays = archive.flatten(self, "steps")
        entry["timesteps"] = archive.plain_times(self.timesteps)
        entry["context"] = dict(self.context)
        archive.save(path, {"kind": _KIND, "version": _VERSION, "record": entry}, arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Returns the record saved at `path`.

        Raises:
            UserError: no record, a damaged one, or one of another version.
        """
        header, arrays = archive.load(path, kind=_KIND, version=_VERSION)
        with archive.reading(path):
            entry = dict(header["record"])
            entry["timesteps"] = archive.real_times(entry["timesteps"])
            return archive.restore(cls, entry, arrays, "steps")


class Along:
    """Sums by step of predictions and latents of a variant against the reference's."""

    def __init__(self, *, label: str, context: Mapping[str, str | int | float] | None = None):
        self._label = label
        self._context = dict(context or {})
        self._times: dict[int, float] = {}
        self._powers: dict[tuple[bool, int], Floats] = {}  # signal, error
        self._cosines: dict[tuple[bool, int], list[float]] = {}

    def add(
        self,
        step: int,
        timestep: float,
        truth: Tensor,
        found: Tensor,
        *,
        latents: tuple[Tensor, Tensor] | None = None,
        free: bool = False,
    ) -> None:
        """Adds the predictions of one step.

        Args:
            truth, found: what the sampler makes of the prediction of the reference and of the
                variant (guidance included), [samples, ...].
            latents: of the reference and of the variant after the step, [samples, ...].
            free: the variant followed its own latents; else those of the reference.
        """
        self._times[step] = timestep
        key = (free, step)
        signal = truth.detach().double().cpu()
        error = found.detach().double().cpu() - signal
        powers = np.array([float(signal.square().sum()), float(error.square().sum())])
        self._powers[key] = self._powers.get(key, np.zeros(2)) + powers
        if latents is not None:
            ours, theirs = (part.detach().double().cpu().flatten(1) for part in latents)
            dots = (ours * theirs).sum(1) / (ours.norm(dim=1) * theirs.norm(dim=1))
            self._cosines.setdefault(key, []).extend(dots.tolist())
        else:
            self._cosines.setdefault(key, []).extend([float("nan")] * len(truth))

    def result(self) -> TrajectoryRecord:
        """Returns what was added so far, NaN where nothing was."""
        steps = sorted(self._times)

        def decibels(free: bool) -> Floats:
            found = [self._powers.get((free, step), np.full(2, np.nan)) for step in steps]
            signal, error = np.array(found).reshape(-1, 2).T
            with np.errstate(divide="ignore"):
                return 10 * (np.log10(signal) - np.log10(error))

        def cosines(free: bool) -> Floats:
            found = [self._cosines.get((free, step), [float("nan")]) for step in steps]
            return np.array([float(np.mean(each)) for each in found])

        return TrajectoryRecord(
            label=self._label,
            samples=max((len(each) for each in self._cosines.values()), default=0),
            timesteps=tuple(self._times[step] for step in steps),
            forced_sqnr_db=decibels(free=False),
            free_sqnr_db=decibels(free=True),
            forced_cosine=cosines(free=False),
            free_cosine=cosines(free=True),
            context=self._context,
        )
