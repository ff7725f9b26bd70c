"""The numbers behind a figure, as a table that opens anywhere."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdq.spreadsheet import cell

Column = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Plotted:
    """What a figure plots, in columns of equal length; a name carries its unit.

    Attributes:
        columns: by name, in the order of the table.
    """

    columns: Mapping[str, Column] = field(default_factory=dict[str, Column])

    @property
    def rows(self) -> int:
        """Number of rows."""
        return max((len(column) for column in self.columns.values()), default=0)

    def to_csv(self) -> str:
        """Returns the table as CSV, one header line; numbers as short as they read back exactly."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(zip(*(map(_cell, each) for each in self.columns.values()), strict=True))
        return buffer.getvalue()


def table(**columns: Any) -> Plotted:
    """Returns columns as a table; a single value is repeated to the length of the others."""
    arrays = {name: np.asarray(value) for name, value in columns.items()}
    longest = max((array.size for array in arrays.values() if array.ndim), default=1)
    return Plotted(
        columns={
            name: array.reshape(-1) if array.ndim else np.repeat(array, longest)
            for name, array in arrays.items()
        }
    )


def stacked(parts: Mapping[str, Plotted], name: str = "model") -> Plotted:
    """Returns tables of equal columns below each other, and a column that says which is which."""
    columns: dict[str, list[Column]] = {}
    for label, part in parts.items():
        columns.setdefault(name, []).append(np.repeat(np.asarray(label), part.rows))
        for key, values in part.columns.items():
            columns.setdefault(key, []).append(values)
    return Plotted(columns={key: np.concatenate(each) for key, each in columns.items()})


def of_map(values: npt.NDArray[Any], rows: str, columns: str, what: str) -> Plotted:
    """Returns a map [rows, columns] as a table of one line a cell, counted from 1."""
    row, column = np.indices(values.shape)
    return table(**{rows: row + 1, columns: column + 1, what: values})


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else repr(float(f"{float(value):.7g}"))
    return str(cell(value))
