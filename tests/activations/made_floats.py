"""8-bit floats from their definition, in double precision: no code of torch or of the library."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

LARGEST = 448.0


def e4m3(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Returns values rounded to OCP e4m3: 3 bits of mantissa, exponents from -6, 448 at most, to
    the nearest and to even (arXiv 2209.05433, section 3).
    """
    given = np.asarray(values, np.float64)
    exponent = np.maximum(np.frexp(given)[1] - 1, -6)  # given = m · 2**exponent, 1 <= |m| < 2
    step = np.exp2(exponent - 3.0)
    return np.clip(np.rint(given / step) * step, -LARGEST, LARGEST)


def by_row(rows: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]:
    """Returns rows [..., columns] as floats, and the scales [...] that take the largest to 448."""
    given = np.asarray(rows, np.float32)
    scale = np.maximum(np.abs(given).max(-1) / np.float32(LARGEST), np.float32(1e-12))
    return e4m3(given * (np.float32(1) / scale)[..., None]), scale
