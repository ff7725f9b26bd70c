"""`vqdq export`: a compressed folder decoded for programs that do not know ours."""

from __future__ import annotations

import argparse

from vqdq.cli.checks import asking, new_path
from vqdq.cli.terminal import Output
from vqdq.quantities import size


def run(options: argparse.Namespace, output: Output) -> int:
    """Writes the decoded folder or file."""
    from vqdq.models import checkpoint, export, sources

    with asking():
        checkpoint.packed_config(sources.locate(options.folder))
        export.check(options.folder, options.output, options.format)
    made = export.export_folder(
        options.folder, new_path(options.output), format=options.format, report=output.report
    )
    values = {
        "output": str(made.output),
        "format": made.format,
        "bytes": made.bytes,
        "decoded_layers": made.decoded,
        "left_out": list(made.left_out),
        "error_db": made.error_db,
        "kinds": dict(made.kinds),
    }
    kinds = ", ".join(f"{count} {kind}" for kind, count in made.kinds)
    stored = f" Tensors: {kinds}." if kinds else ""
    lines = [f"{made.output}: {size(made.bytes)}, {made.decoded} layers decoded.{stored}"]
    output.result(values, [*lines, *(f"  {sentence}." for sentence in made.left_out)])
    return 0
