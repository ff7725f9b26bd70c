"""The numbers of a model's card: what comparisons measured on it, put into its README.md."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vqdq.durable import write_text
from vqdq.errors import UserError
from vqdq.jobs import frontier, models
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.frontier import COSTS, QUALITIES, Sample
from vqdq.jobs.models import ModelEntry
from vqdq.quantities import digits
from vqdq.report.source import open_run
from vqdq.ui.wording import decibels

START, END = "<!-- measured by vqdq -->", "<!-- end of what was measured -->"
_BLOCK = re.compile(re.escape(START) + r".*?" + re.escape(END) + r"\n?", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Name and value of each measure in words; count: pictures it was measured on."""

    rows: tuple[tuple[str, str], ...]
    count: int


def measured(folder: Path, workspace: Path) -> Measured:
    """Returns what the finished comparisons and grids of a workspace say about a model.

    Raises:
        UserError: it was never compared there.
    """
    runs = workspace / "runs"
    found: list[Sample] = []
    for path in sorted(runs.glob("*-compare-*")) + sorted(runs.glob("*-grid-*")):
        try:
            found += frontier.samples([open_run(path)])
        except UserError:
            continue  # unfinished, or of another version
    (entry,) = [each for each in models.entries(folder.parent, ()) if each.path == folder] or [None]
    mine = [] if entry is None else frontier.of_model(entry, found)
    if entry is None or not mine:
        raise UserError(
            "was never compared, so there is nothing to add.",
            where=folder.name,
            remedy=f"Compare it in the workspace {workspace} first.",
        )
    return Measured(rows=tuple(_rows(entry, mine)), count=len(mine))


def _rows(entry: ModelEntry, mine: list[Sample]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for quality in QUALITIES:
        point = frontier.frontier([entry], mine, cost=COSTS[0], quality=quality).points[0]
        if point.quality is None:
            continue
        what = point.quality
        unit = quality.unit
        value = decibels(what.value) if quality.name == "psnr" else digits(what.value, unit)
        kind = "share" if quality.name == "alignment" else "median"
        span = f", {digits(what.low)} – {digits(what.high)}" if point.count > 1 else ""
        rows.append((quality.title, f"{value} ({kind} of n = {point.count}{span})"))
    return rows


def update(folder: Path, found: Measured) -> Path:
    """Returns the path of README.md after putting the numbers into it; they replace older ones.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    path = folder / "README.md"
    lines = [START, "## Measured against the original", "", "| | |", "| --- | --- |"]
    lines += [f"| {name} | {value} |" for name, value in found.rows]
    lines += [
        "",
        "The same prompts, seeds and settings drawn by both; intervals of 95 %, of medians between",
        "order statistics, of shares Wilson's.",
        END,
    ]
    with disk_faults(path):
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        text = _BLOCK.sub("", text).rstrip("\n")
        write_text(path, f"{text}\n\n" + "\n".join(lines) + "\n")
    return path
