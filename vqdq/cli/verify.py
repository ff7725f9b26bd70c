"""`vqdq verify`: checksums, sizes and every weight of a compressed folder."""

from __future__ import annotations

import argparse

from vqdq.cli.checks import asking
from vqdq.cli.terminal import Output
from vqdq.errors import UserError


def run(options: argparse.Namespace, output: Output) -> int:
    """Checks a folder; 1 when something is wrong."""
    from vqdq.models import checkpoint, sources

    with asking():
        source = sources.locate(options.folder)
        if not source.is_quantized:
            raise UserError(
                "is not compressed.",
                where=options.folder,
                remedy="Name a folder that `vqdq compress` wrote.",
            )
    found = checkpoint.verify(options.folder, report=output.report)
    values = {
        "folder": str(found.folder),
        "ok": found.ok,
        "files": found.files,
        "layers": found.layers,
        "problems": list(found.problems),
    }
    what = f"{found.files} files and {found.layers} layers checked"
    if found.ok:
        output.result(values, [f"{options.folder}: in order, {what}."])
        return 0
    count = len(found.problems)
    lines = [f"{options.folder}: {count} problem{'s' if count > 1 else ''}, {what}."]
    output.result(values, [*lines, *(f"  {problem}" for problem in found.problems)])
    return 1
