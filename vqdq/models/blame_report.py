"""What each layer of a variant costs the noise prediction, call by call: the record of `blame`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from vqdq.capture import archive

Floats = npt.NDArray[np.float64]
By = Literal["gain", "damage", "share", "estimate"]
WHOLE, REGION = 0, 1  # places on the first axis of the energies
_KIND, _VERSION = "blame", 1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BlameReport:
    """Squared norms of guided noise predictions and their errors, MEASURED unless said otherwise.

    An area is the whole picture (0) or a marked region (1, only where one was given). NaN stands
    for what was not measured.

    Attributes:
        names: of the packed layers, in the order of execution. What follows has one entry each.
        methods: of the weights; `activations`: of the inputs, "" where they stay as they are.
        weights: how many; `bytes`: stored, parameters of the input included.
        relative_error: ‖W − Ŵ‖² / ‖W‖².
        estimate: ESTIMATED squared error of the prediction / its energy of this layer alone, to
            first order, in the region where one was given; NaN where none was asked for.
        steps, timesteps, prompts: of the recorded calls; the first prompt of each.
        signal: what the reference predicts, [areas, calls]; `error`: of the variant as it is.
        repaired: error left when the layer is put back to 16 bits, weight and input,
            [areas, calls, layers].
        unrounded: error left when only its input is no longer rounded; NaN where it is not.
        alone: error of the reference with this one layer quantized.
        context: what the caller wanted remembered.
    """

    names: tuple[str, ...]
    methods: tuple[str, ...]
    activations: tuple[str, ...]
    weights: tuple[int, ...]
    bytes: tuple[int, ...]
    relative_error: Floats
    estimate: Floats
    steps: tuple[int, ...]
    timesteps: tuple[float, ...]
    prompts: tuple[int, ...]
    signal: Floats
    error: Floats
    repaired: Floats
    unrounded: Floats
    alone: Floats
    context: Mapping[str, str | int | float]

    @property
    def areas(self) -> int:
        """2 with a region, else 1."""
        return len(self.signal)

    @property
    def measured(self) -> npt.NDArray[np.bool_]:
        """Which layers were measured both ways on at least one call, [layers]."""
        both = np.isfinite(self.repaired[WHOLE]) & np.isfinite(self.alone[WHOLE])
        return both.any(axis=0)

    @property
    def complete(self) -> bool:
        """Every layer that was to be measured was, on every call."""
        done = np.isfinite(self.repaired[WHOLE]) & np.isfinite(self.alone[WHOLE])
        return bool(done[:, self.measured].all()) and bool(np.isfinite(self.error).all())

    @property
    def repair_bytes(self) -> tuple[int, ...]:
        """What putting each layer back to 16 bits adds to the file."""
        return tuple(2 * n - own for n, own in zip(self.weights, self.bytes, strict=True))

    def sqnr_db(self, area: int = WHOLE) -> float:
        """Returns 10 log10(Σ signal / Σ error) of the variant as it is, over the calls measured."""
        known = np.isfinite(self.error[area])
        return float(_db(self.signal[area][known].sum(), self.error[area][known].sum()))

    def gain_db(self, area: int = WHOLE) -> Floats:
        """Returns the quality regained by putting each layer back to 16 bits, dB, [layers].

        The SQNR over all calls where the layer was measured, minus that of the variant there. In a
        variant with rounded inputs any change draws the rounding errors of all later layers anew,
        which alone can make some tenths of a dB: there, believe what `damage_db` confirms.
        """
        return _paired(self.error[area], self.repaired[area])

    def input_gain_db(self, area: int = WHOLE) -> Floats:
        """Returns the quality regained by not rounding each layer's input any more, dB."""
        return _paired(self.error[area], self.unrounded[area])

    def damage_db(self, area: int = WHOLE) -> Floats:
        """Returns the SQNR of the reference with only this layer quantized, dB; low is bad."""
        return _paired(self.signal[area], self.alone[area])

    def gain_error_db(self, area: int = WHOLE) -> Floats:
        """Returns the standard error of `gain_db`: the jackknife over calls; NaN below 2 calls.

        It says how far other calls of these prompts would move the number (Efron and Stein 1981).
        """
        return _jackknife(self.error[area], self.repaired[area])

    def damage_error_db(self, area: int = WHOLE) -> Floats:
        """Returns the standard error of `damage_db`, see `gain_error_db`."""
        return _jackknife(self.signal[area], self.alone[area])

    def removed(self, area: int = WHOLE) -> Floats:
        """Returns the share of the variant's error that a repair removes, [layers]; may be < 0."""
        return 1 - 10 ** (-self.gain_db(area) / 10)

    def input_removed(self, area: int = WHOLE) -> Floats:
        """Returns the share of the variant's error that an input as it is removes, [layers]."""
        return 1 - 10 ** (-self.input_gain_db(area) / 10)

    def alone_share(self, area: int = WHOLE) -> Floats:
        """Returns the error of each layer alone over that of the variant, [layers]."""
        return 10 ** (-_paired(self.error[area], self.alone[area]) / 10)

    def share(self, area: int = WHOLE) -> Floats:
        """Returns each layer's part of the variant's squared error, [layers]; may be < 0.

        Half of what its repair removes plus half of what it does alone, both over the error. Where
        the errors δ of layers add up to that of the variant, this is a + c with a = ‖δ‖² / ‖Σδ‖²
        and c = ⟨δ, Σ others⟩ / ‖Σδ‖², the Shapley value: the parts of all layers sum to 1. No c is
        taken to be beyond ‖δ‖ ‖Σ others‖ / ‖Σδ‖², which products cannot be: a repair that changes
        more has only drawn later layers' rounding errors anew.
        """
        alone, removed = self.alone_share(area), self.removed(area)
        bound = np.sqrt(alone * np.maximum(1 - removed, 0))
        return alone + np.clip((removed - alone) / 2, -bound, bound)

    def ranked(self, by: By = "gain", area: int = WHOLE) -> tuple[int, ...]:
        """Returns the places of the layers, worst first; those without a number are left out.

        Args:
            by: "gain": quality regained by a repair; "damage": lowest SQNR alone; "share": both;
                "estimate": to first order, of the region where one was given.
        """
        scores = {
            "gain": self.gain_db(area),
            "damage": -self.damage_db(area),
            "share": self.share(area),
            "estimate": self.estimate,
        }[by]
        order = np.argsort(-scores, kind="stable")
        return tuple(int(place) for place in order if not np.isnan(scores[place]))

    def by_step(self, area: int = WHOLE) -> tuple[tuple[int, ...], Floats]:
        """Returns the steps measured, and the quality regained at each, dB, [steps, layers]."""
        steps = sorted(set(self.steps))
        rows = [np.array(self.steps) == step for step in steps]
        found = [_paired(self.error[area][row], self.repaired[area][row]) for row in rows]
        return tuple(steps), np.array(found).reshape(len(steps), len(self.names))

    def sqnr_by_step(self, area: int = WHOLE) -> Floats:
        """Returns the SQNR of the variant at each of the steps of `by_step`, dB, [steps]."""
        found: list[float] = []
        for step in sorted(set(self.steps)):
            row = np.array(self.steps) == step
            found.append(float(_db(self.signal[area][row].sum(), self.error[area][row].sum())))
        return np.array(found)

    def save(self, path: Path) -> None:
        """Writes the report to one `.npz` file, atomically."""
        entry, arrays = archive.flatten(self, "energies")
        entry["timesteps"] = archive.plain_times(self.timesteps)
        entry["context"] = dict(self.context)
        archive.save(path, {"kind": _KIND, "version": _VERSION, "record": entry}, arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Returns the report saved at `path`.

        Raises:
            UserError: no report, a damaged one, or one of another version.
        """
        header, arrays = archive.load(path, kind=_KIND, version=_VERSION)
        entry = dict(header["record"])
        entry["timesteps"] = archive.real_times(entry["timesteps"])
        return archive.restore(cls, entry, arrays, "energies")


def _db(signal: Floats, error: Floats) -> Floats:
    """Returns 10 log10(signal / error): inf without an error."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return 10 * (np.log10(signal) - np.log10(error))


def _paired(above: Floats, below: Floats) -> Floats:
    """Returns the ratio of sums over the calls [calls] that were measured below, [layers]."""
    known = np.isfinite(below)
    top = np.where(known, above[:, None], 0).sum(axis=0)
    found = _db(top, np.where(known, below, 0).sum(axis=0))
    return np.where(known.any(axis=0), found, np.nan)


def _jackknife(above: Floats, below: Floats) -> Floats:
    """Returns √((n − 1) / n Σ (θ_i − mean θ)²), θ_i without call i, over the calls measured."""
    known = np.isfinite(below)
    count = known.sum(axis=0)  # [layers]
    top, low = np.where(known, above[:, None], 0), np.where(known, below, 0)
    without = _db(top.sum(axis=0) - top, low.sum(axis=0) - low)  # [calls, layers]
    usable = known & np.isfinite(without)
    number = np.maximum(usable.sum(axis=0), 1)
    mean = np.where(usable, without, 0).sum(axis=0) / number
    spread = np.where(usable, np.square(np.where(usable, without, 0) - mean), 0).sum(axis=0)
    enough = (count >= 2) & (usable.sum(axis=0) == count)
    return np.where(enough, np.sqrt((number - 1) / number * spread), np.nan)
