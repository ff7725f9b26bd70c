"""What a capture leaves behind: frozen records of plain arrays that save, load and compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

import vqdq.capture.archive as archive
from vqdq.capture.streams import OUTLIER, Detail, Sketch, Summary
from vqdq.errors import UserError
from vqdq.params import nearest

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

_KIND, _VERSION = "activations", 1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scalars:
    """One number for each half, layer and step; every array [halves, layers, steps].

    Attributes:
        absmax, rms, kurtosis: of the layer's input; exact.
        median: median magnitude, estimated from bins.
        outliers: share of values with |x| >= 6; `nonfinite`: how many were NaN or infinite.
        output_energy: ‖y‖²; `output_sketch`: [halves, layers, steps, Sketch.WIDTH].
    """

    absmax: Floats
    rms: Floats
    median: Floats
    kurtosis: Floats
    outliers: Floats
    nonfinite: Floats
    output_energy: Floats
    output_sketch: Floats

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
        floor = np.maximum(self.absmax / 1000, 1e-12)
        return (self.absmax / np.maximum(self.median, floor)).astype(np.float32)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LayerRecord:
    """The input of one layer at one step.

    Attributes:
        name, kind: the layer, and "linear" or "conv".
        step: from 0; `halves`: names of the leading axis ("uncond", "cond") or ("all",).
        positions: (h, w) of a picture, (tokens,) of a text, () for a single vector.
        minimum, maximum, mean: exact, by channel, [halves, channels].
        p01, median, p99: estimated percentiles, [halves, channels].
        outliers: how many values of a channel have |x| >= 6, [halves, channels].
        position_absmax: largest magnitude at a position, [halves, *positions].
        histogram: counts in the bins of `streams.bin_edges`, [halves, BINS].
        count, kurtosis, median_abs: of the whole input, [halves].
    """

    name: str
    kind: str
    step: int
    halves: tuple[str, ...]
    positions: tuple[int, ...]
    minimum: Floats
    maximum: Floats
    mean: Floats
    p01: Floats
    median: Floats
    p99: Floats
    outliers: Counts
    position_absmax: Floats
    histogram: Counts
    count: Counts
    kurtosis: Floats
    median_abs: Floats

    @classmethod
    def of(
        cls,
        *,
        name: str,
        kind: str,
        step: int,
        halves: tuple[str, ...],
        positions: tuple[int, ...],
        details: Sequence[Detail],
        summaries: Sequence[Summary],
    ) -> Self:
        """Returns the record of the streams of each half."""
        levels = np.stack([stream.percentiles() for stream in details])  # [halves, 3, channels]

        def floats(values: Sequence[object]) -> Floats:
            return np.stack([np.asarray(value) for value in values]).astype(np.float32)

        return cls(
            name=name,
            kind=kind,
            step=step,
            halves=halves,
            positions=positions,
            minimum=floats([stream.minimum for stream in details]),
            maximum=floats([stream.maximum for stream in details]),
            mean=floats([stream.total / max(stream.count, 1) for stream in details]),
            p01=levels[:, 0].astype(np.float32),
            median=levels[:, 1].astype(np.float32),
            p99=levels[:, 2].astype(np.float32),
            outliers=np.stack([stream.outliers for stream in details]),
            position_absmax=floats(
                [stream.position_absmax.reshape(positions) for stream in details]
            ),
            histogram=np.stack([stream.histogram.sum(axis=0) for stream in details]),
            count=np.array([summary.count for summary in summaries], dtype=np.int64),
            kurtosis=floats([summary.kurtosis for summary in summaries]),
            median_abs=floats([summary.median for summary in summaries]),
        )

    @property
    def absmax(self) -> Floats:
        """Largest magnitude of each channel, [halves, channels]."""
        return np.maximum(np.abs(self.minimum), np.abs(self.maximum))

    @property
    def outlier_threshold(self) -> float:
        """From which magnitude on a value counts as an outlier."""
        return OUTLIER

    def half(self, name: str) -> int:
        """Returns the index of a half; a record without guidance has one half for every name."""
        return self.halves.index(name) if name in self.halves else len(self.halves) - 1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ActivationRecord:
    """Everything one capture saw: scalars for all layers and steps, details for some.

    Attributes:
        layers: names in the order they ran; `kinds`: "linear" or "conv" of each.
        halves: names of the halves; `timesteps`: of each sampler step, NaN when unknown.
        details: by (layer, step); `context`: what the caller wanted remembered.
    """

    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    halves: tuple[str, ...]
    timesteps: tuple[float, ...]
    scalars: Scalars
    details: Mapping[tuple[str, int], LayerRecord]
    context: Mapping[str, str | int | float]

    def layer(self, name: str, step: int) -> LayerRecord:
        """Returns the details of a layer at a step.

        Raises:
            UserError: the layer was not watched, or not in detail at this step.
        """
        if name not in self.layers:
            raise UserError(
                "The layer was not recorded.",
                where=name,
                remedy=nearest(name, self.layers, "layer"),
            )
        if (name, step) not in self.details:
            steps = sorted(at for layer, at in self.details if layer == name)
            known = ", ".join(str(at + 1) for at in steps) or "none"
            raise UserError(
                f"Step {step + 1} of this layer was not recorded in detail (recorded: {known}).",
                where=name,
                remedy="Capture this layer.",
            )
        return self.details[name, step]

    def sqnr_db(self, reference: ActivationRecord) -> npt.NDArray[np.float64]:
        """Returns 10·log10(‖y‖² / ‖y − ŷ‖²) of the layers' outputs against `reference`.

        Both runs go their own way from the same noise, so this is the drift of the whole model up
        to a layer. Estimated from sketches: standard error 0.4 dB, equal outputs give inf.

        Returns:
            [halves, layers, steps] in this record's order; NaN where the reference has no such
            entry.
        """
        found = np.full(self.scalars.absmax.shape, np.nan)
        steps = min(len(self.timesteps), len(reference.timesteps))
        if self.halves != reference.halves:
            return found
        for row, name in enumerate(self.layers):
            if name not in reference.layers:
                continue
            other = reference.layers.index(name)
            mine = self.scalars.output_sketch[:, row, :steps].astype(np.float64)
            theirs = reference.scalars.output_sketch[:, other, :steps].astype(np.float64)
            noise = np.square(mine - theirs).sum(axis=-1)  # [halves, steps]
            signal = reference.scalars.output_energy[:, other, :steps].astype(np.float64)
            with np.errstate(divide="ignore"):
                found[:, row, :steps] = 10 * np.log10(signal) - 10 * np.log10(noise)
        return found

    def save(self, path: Path) -> None:
        """Writes the record to one `.npz` file, atomically."""
        arrays: dict[str, archive.Array] = {
            f"scalars/{field.name}": getattr(self.scalars, field.name)
            for field in dataclasses.fields(Scalars)
        }
        entries: list[dict[str, Any]] = []
        for index, detail in enumerate(self.details.values()):
            entry: dict[str, Any] = {}
            for field in dataclasses.fields(LayerRecord):
                value = getattr(detail, field.name)
                if isinstance(value, np.ndarray):
                    arrays[f"details/{index}/{field.name}"] = value
                else:
                    entry[field.name] = value
            entries.append(entry)
        header = {
            "kind": _KIND,
            "version": _VERSION,
            "layers": self.layers,
            "kinds": self.kinds,
            "halves": self.halves,
            "timesteps": [None if np.isnan(time) else time for time in self.timesteps],
            "details": entries,
            "context": dict(self.context),
        }
        archive.save(path, header, arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Returns the record saved at `path`.

        Raises:
            UserError: no record, a damaged one, or one of another version.
        """
        header, arrays = archive.load(path, kind=_KIND, version=_VERSION)
        scalars = Scalars(
            **{field.name: arrays[f"scalars/{field.name}"] for field in dataclasses.fields(Scalars)}
        )
        details: dict[tuple[str, int], LayerRecord] = {}
        for index, entry in enumerate(header["details"]):
            place = f"details/{index}/"
            values: dict[str, Any] = {
                name.removeprefix(place): value
                for name, value in arrays.items()
                if name.startswith(place)
            }
            for key, value in entry.items():
                values[key] = tuple(value) if isinstance(value, list) else value
            detail = LayerRecord(**values)
            details[detail.name, detail.step] = detail
        times = tuple(float("nan") if time is None else float(time) for time in header["timesteps"])
        return cls(
            layers=tuple(header["layers"]),
            kinds=tuple(header["kinds"]),
            halves=tuple(header["halves"]),
            timesteps=times,
            scalars=scalars,
            details=details,
            context=header["context"],
        )
