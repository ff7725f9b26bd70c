"""`vqdq report`: one file from a run, a folder of `vqdq compare` or `grid`, or a model's card."""

from __future__ import annotations

import argparse
from contextlib import closing
from pathlib import Path

from vqdq.cli.checks import asking, new_path
from vqdq.cli.terminal import Output
from vqdq.errors import UserError
from vqdq.jobs.run import RunRecord
from vqdq.jobs.votes import FOLDER, VoteStore
from vqdq.places import expanded
from vqdq.quantities import size
from vqdq.report import card
from vqdq.report.bundle import Written, write
from vqdq.report.source import open_run


def run(options: argparse.Namespace, output: Output) -> int:
    """Writes the report of a run, or with `--card` the card of a compressed model."""
    if options.card:
        return _card(options, output)
    with asking():
        if not options.output:
            raise UserError("is missing.", where="--output", remedy="Name a new FILE.html.")
        if not options.output.lower().endswith((".html", ".htm")):
            raise UserError("is no HTML file.", where=options.output, remedy="Name a FILE.html.")
        found = open_run(_folder(options.run, Path(options.workspace)))
    target = new_path(options.output)
    for suffix in (".csv", ".json"):
        new_path(str(target.with_suffix(suffix)))
    written = _write(found, target)
    values = {
        "html": str(written.html),
        "csv": str(written.csv),
        "json": str(written.json),
        "bytes": written.html.stat().st_size,
        "pictures_left_out": written.left_out,
    }
    lines = [f"{written.html}  {size(written.html.stat().st_size)}"]
    lines.append(f"  {written.csv.name} and {written.json.name} hold the numbers.")
    if written.left_out:
        lines.append(f"  {written.left_out} pictures were left out to keep it small.")
    output.result(values, lines)
    return 0


def _folder(name: str, workspace: Path) -> Path:
    """The folder of a run by its id in the workspace, or the folder itself."""
    inside = expanded(workspace) / "runs" / name
    if "/" not in name and "\\" not in name and inside.is_dir():
        return inside.absolute()
    return expanded(name).absolute()


def _write(found: RunRecord, target: Path) -> Written:
    home = found.folder.parents[1] if len(found.folder.parents) > 1 else found.folder
    if found.kind != "blind" or not (home / FOLDER / "votes.sqlite").is_file():
        return write(found, target)
    with closing(VoteStore.of(home)) as votes:
        return write(found, target, votes=votes)


def _card(options: argparse.Namespace, output: Output) -> int:
    """Adds what comparisons in the workspace measured to the model's README.md."""
    workspace = expanded(options.workspace).absolute()
    with asking():
        folder = expanded(options.run).absolute()
        if not (folder / "vqdq.json").is_file():
            folder = workspace / "models" / options.run
        if not (folder / "vqdq.json").is_file():
            raise UserError(
                "is not compressed.",
                where=options.run,
                remedy="Name a folder that `vqdq compress` wrote.",
            )
        measured = card.measured(folder, workspace)
    path = card.update(folder, measured)
    rows = [f"  {name}: {value}" for name, value in measured.rows]
    output.result({"card": str(path), "pictures": measured.count}, [str(path), *rows])
    return 0
