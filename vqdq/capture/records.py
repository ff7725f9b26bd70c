"""What a capture leaves behind: frozen records of plain arrays that save, load and compare."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

import vqdq.capture.archive as archive
import vqdq.capture.streams as streams
from vqdq.capture.codes import CodesRecord
from vqdq.capture.kept import KeptTensor
from vqdq.capture.scalars import Scalars
from vqdq.capture.streams import OUTLIER, Detail, Summary
from vqdq.errors import UserError
from vqdq.params import nearest

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

R = TypeVar("R")

_KIND, _VERSION = "activations", 2


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
        surface: largest magnitude by position and channel, [halves, rows, columns]; neighbours
            share a cell beyond `streams.SURFACE`.
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
    surface: Floats
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
        detail: Detail,
        summary: Summary,
    ) -> Self:
        """Returns the record of the streams."""
        low, high, first, last = streams.cut(detail.limits, detail.channels)
        count = max(summary.count // detail.channels, 1)  # values of a channel
        flat = detail.histogram.reshape(-1, streams.BINS)
        levels = streams.quantiles(
            flat, low.astype(np.float64).ravel(), high.astype(np.float64).ravel(), (0.01, 0.5, 0.99)
        ).reshape(3, *low.shape)  # [levels, halves, channels]
        far = np.maximum(-low, high).ravel() >= OUTLIER  # few rows: counting all takes longer
        outliers = np.zeros(len(flat), np.int64)
        outliers[far] = streams.outlier_counts(flat[far])
        largest = np.maximum(summary.span[:2].max(axis=0), 0.0)
        middle = streams.magnitude_quantiles(summary.histogram, largest, (0.5,))
        return cls(
            name=name,
            kind=kind,
            step=step,
            halves=halves,
            positions=positions,
            minimum=low,
            maximum=high,
            mean=(detail.total / count).astype(np.float32),
            p01=levels[0].astype(np.float32),
            median=levels[1].astype(np.float32),
            p99=levels[2].astype(np.float32),
            outliers=outliers.reshape(low.shape),
            position_absmax=np.maximum(-first, last).reshape(len(halves), *positions),
            surface=detail.surface,
            histogram=summary.histogram
            if summary.counted == summary.count
            else detail.histogram.sum(axis=1, dtype=np.int64),
            count=np.full(len(halves), summary.count, dtype=np.int64),
            kurtosis=streams.kurtosis(summary.power / max(summary.counted, 1)).astype(np.float32),
            median_abs=middle[0].astype(np.float32),
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
class LayerSeries:
    """The input of one layer at every step, NaN at steps that were not kept.

    Attributes:
        name: the layer; `positions`: as in `LayerRecord`.
        channel_low, channel_high: exact extremes by channel, [halves, steps, channels].
        position_low, position_high: by position, [halves, steps, positions].
        histogram: counts in the bins of `streams.bin_edges`, uint32 [halves, steps, BINS].
    """

    name: str
    positions: tuple[int, ...]
    channel_low: Floats
    channel_high: Floats
    position_low: Floats
    position_high: Floats
    histogram: npt.NDArray[np.uint32]

    @property
    def channel_absmax(self) -> Floats:
        """Largest magnitude of each channel, [halves, steps, channels]."""
        return np.maximum(-self.channel_low, self.channel_high)

    @property
    def position_absmax(self) -> Floats:
        """Largest magnitude at each position, [halves, steps, positions]."""
        return np.maximum(-self.position_low, self.position_high)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ActivationRecord:
    """Everything one capture saw: scalars for all layers and steps, details for some.

    Attributes:
        layers: names in the order they ran; `kinds`: "linear" or "conv" of each.
        halves: names of the halves; `timesteps`: of each sampler step, NaN when unknown.
        series: by layer, what is known of every step.
        details: by (layer, step); `turned`: the same inputs as they are rounded, where they are
            smoothed or rotated first; `codes`: the levels and their use, where they are rounded.
        kept: the values of one layer at one step; `context`: what the caller wanted remembered.
    """

    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    halves: tuple[str, ...]
    timesteps: tuple[float, ...]
    scalars: Scalars
    series: Mapping[str, LayerSeries]
    details: Mapping[tuple[str, int], LayerRecord]
    turned: Mapping[tuple[str, int], LayerRecord]
    codes: Mapping[tuple[str, int], CodesRecord]
    kept: KeptTensor | None
    context: Mapping[str, str | int | float]

    def half(self, name: str) -> int:
        """Returns the index of a half; a record without guidance has one half for every name."""
        return self.halves.index(name) if name in self.halves else len(self.halves) - 1

    def matching(self, pattern: str) -> tuple[str, ...]:
        """Returns the layers that a pattern of a recipe's kind names ("down*attn2.*").

        Raises:
            UserError: it matches none.
        """
        found = tuple(name for name in self.layers if fnmatch.fnmatchcase(name, pattern))
        found = found or tuple(name for name in self.layers if pattern and pattern in name)
        if not found:
            raise UserError(
                f'no recorded layer matches "{pattern}".',
                where="layer",
                remedy=nearest(pattern, self.layers, "layer"),
            )
        return found

    def paired(self, signal: Floats, error: Floats) -> ActivationRecord:
        """Returns the record with ‖y‖² and ‖y − ŷ‖² of outputs for the same model inputs.

        Args:
            signal, error: [halves, layers, steps] in this record's order (`Pairing.energies`).
        """
        scalars = replace(self.scalars, paired_signal=signal, paired_error=error)
        return replace(self, scalars=scalars)

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
        """Writes the record to one `.npz` file, atomically; extremes of `series` to 3.6 digits."""
        _, arrays = archive.flatten(self.scalars, "scalars")
        header: dict[str, Any] = {
            "kind": _KIND,
            "version": _VERSION,
            "layers": self.layers,
            "kinds": self.kinds,
            "halves": self.halves,
            "timesteps": archive.plain_times(self.timesteps),
            "context": dict(self.context),
        }
        groups: dict[str, list[object]] = {
            "series": list(self.series.values()),
            "details": list(self.details.values()),
            "turned": list(self.turned.values()),
            "codes": list(self.codes.values()),
            "kept": [] if self.kept is None else [self.kept],
        }
        for group, items in groups.items():
            entries: list[dict[str, Any]] = []
            for index, item in enumerate(items):
                entry, more = archive.flatten(item, f"{group}/{index}")
                entries.append(entry)
                if group == "series":  # most of the file, and drawn, not computed with
                    more = {name: archive.shortened(array) for name, array in more.items()}
                arrays |= more
            header[group] = entries
        header["codes_of"] = list(self.codes)
        archive.save(path, header, arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Returns the record saved at `path`.

        Raises:
            UserError: no record, a damaged one, or one of another version.
        """
        header, arrays = archive.load(path, kind=_KIND, version=_VERSION)
        with archive.reading(path):

            def group(name: str, kind: type[R]) -> list[R]:
                return [
                    archive.restore(kind, entry, arrays, f"{name}/{index}")
                    for index, entry in enumerate(header[name])
                ]

            codes = zip(header["codes_of"], group("codes", CodesRecord), strict=True)
            kept = group("kept", KeptTensor)
            return cls(
                layers=tuple(header["layers"]),
                kinds=tuple(header["kinds"]),
                halves=tuple(header["halves"]),
                timesteps=archive.real_times(header["timesteps"]),
                scalars=archive.restore(Scalars, {}, arrays, "scalars"),
                series={item.name: item for item in group("series", LayerSeries)},
                details={(item.name, item.step): item for item in group("details", LayerRecord)},
                turned={(item.name, item.step): item for item in group("turned", LayerRecord)},
                codes={(str(name), int(step)): item for (name, step), item in codes},
                kept=kept[0] if kept else None,
                context=header["context"],
            )
