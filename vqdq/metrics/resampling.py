"""The cluster bootstrap: intervals that stay honest where prompts repeat.

Votes on one prompt are alike: its pictures share what makes them easy or hard. So prompts are
drawn again with replacement, each with everything that was said about it, and the spread of the
result is read off. (Davison and Hinkley 1997, section 3.8; percentile intervals.)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from vqdq.metrics.proportions import Interval

SAMPLES = 2000
_BLOCK = 4_000_000  # draws held in memory at once

Counts = NDArray[np.float64]
Statistic = Callable[[Counts], Counts]


def cluster_sums(
    clusters: Counts, generator: torch.Generator, *, samples: int = SAMPLES
) -> NDArray[np.float64]:
    """Returns the sums [samples, fields] of as many clusters as there are, drawn anew.

    Args:
        clusters: one row of counts a cluster, [clusters, fields].
        generator: draws the clusters; the same state gives the same sums.
    """
    count = len(clusters)
    parts: list[Counts] = []
    block = max(1, _BLOCK // max(1, count))
    for start in range(0, samples, block):
        drawn = torch.randint(count, (min(block, samples - start), count), generator=generator)
        rows, offset = len(drawn), torch.arange(len(drawn))[:, None] * count
        times = torch.bincount((drawn + offset).flatten(), minlength=rows * count)
        parts.append(times.reshape(rows, count).double().numpy() @ clusters)
    return np.concatenate(parts)


def percentile_interval(
    values: NDArray[np.float64], estimate: float, *, level: float = 0.95
) -> Interval:
    """Returns the middle `level` of resampled `values` around `estimate`.

    Values that are nan (a sample in which nobody decided) do not take part; without any other
    value the interval is [0, 1], as nothing is known.
    """
    known = values[np.isfinite(values)]
    if not len(known) or not math.isfinite(estimate):
        return Interval(value=estimate, low=0.0, high=1.0, level=level)
    low, high = np.quantile(known, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(value=estimate, low=float(low), high=float(high), level=level)
