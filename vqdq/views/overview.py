"""What is known of any layer at any step without having kept it in detail."""

from __future__ import annotations

import numpy as np

from vqdq.capture import streams
from vqdq.capture.records import ActivationRecord, LayerRecord


def layer_at(record: ActivationRecord, name: str, step: int) -> LayerRecord | None:
    """Returns the details of a layer at a step, else what its series knows; None for neither.

    A series has the exact extremes of channels and positions and the histogram. Percentiles,
    median and mean of a channel are NaN then, `outliers` is 0 and `surface` is empty.
    """
    kept = record.details.get((name, step))
    if kept is not None:
        return kept
    series = record.series.get(name)
    if series is None or not 0 <= step < len(record.timesteps):
        return None
    low, high = series.channel_low[:, step], series.channel_high[:, step]
    if not np.isfinite(low).all():
        return None  # the budget of the series held every n-th step only
    row = record.layers.index(name)
    unknown = np.full_like(low, np.nan)
    histogram = series.histogram[:, step].astype(np.int64)
    shape = (len(record.halves), *series.positions)
    return LayerRecord(
        name=name,
        kind=record.kinds[row],
        step=step,
        halves=record.halves,
        positions=series.positions,
        minimum=low,
        maximum=high,
        mean=unknown,
        p01=unknown,
        median=unknown,
        p99=unknown,
        outliers=np.zeros(low.shape, np.int64),
        position_absmax=series.position_absmax[:, step].reshape(shape),
        surface=np.zeros((len(record.halves), 0, 0), np.float32),
        histogram=histogram,
        count=histogram.sum(axis=1),
        kurtosis=record.scalars.kurtosis[:, row, step],
        median_abs=record.scalars.median[:, row, step],
    )


def detailed(record: LayerRecord) -> bool:
    """Returns whether percentiles and the surface are known, not the extremes alone."""
    return record.surface.size > 0


def outlier_share(record: LayerRecord, half: str) -> tuple[float, int]:
    """Returns the share of values with |x| >= 6, and how many channels have one; both exact.

    Of a large input whose histogram counts only some values, the share is of those.
    """
    at = record.half(half)
    counts = record.histogram[at]
    found = int(streams.outlier_counts(counts[None])[0])
    channels = int((record.absmax[at] >= record.outlier_threshold).sum())
    return found / max(int(counts.sum()), 1), channels
