"""`vqdq import`: a single-file checkpoint as a diffusers folder."""

from __future__ import annotations

import argparse

from vqdq.cli.checks import asking, new_path
from vqdq.cli.terminal import Output
from vqdq.quantities import size


def run(options: argparse.Namespace, output: Output) -> int:
    """Imports a file, into a folder of its own or into the cache, where its name finds it."""
    from vqdq.models import opening, sources

    if options.output:
        target = new_path(options.output)
        folder = opening.import_file(
            options.file, target, base=options.completing, report=output.report
        )
        completed_by = opening.completed_by(folder)
    else:
        with asking():
            source = sources.locate(options.file, base=options.completing, report=output.report)
        folder, completed_by = source.folder, source.completed_by
    whole = sum(item.stat().st_size for item in folder.rglob("*") if item.is_file())
    missing = sources.locate(folder).missing
    values = {
        "folder": str(folder),
        "bytes": whole,
        "completed_by": completed_by,
        "missing": list(missing),
    }
    lines = [f"{folder}: {size(whole)}, completed by {completed_by}."]
    if missing:
        lines.append(
            f"  To draw it needs {', '.join(missing)}: name a folder or a hub id of the same family"
            " with --base."
        )
    if not options.output:
        lines.append(f"  Every command takes {options.file} as a model now.")
    output.result(values, lines)
    return 0
