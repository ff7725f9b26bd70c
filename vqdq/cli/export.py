"""`vqdq export`: a compressed folder decoded for programs that do not know ours."""

from __future__ import annotations

import argparse

from vqdq.cli.checks import asking, new_path
from vqdq.cli.terminal import Output, size


def run(options: argparse.Namespace, output: Output) -> int:
    """Writes the decoded folder."""
    from vqdq.models import checkpoint, export, sources

    with asking():
        checkpoint.packed_config(sources.locate(options.folder))
    made = export.export_folder(options.folder, new_path(options.output), report=output.report)
    values = {
        "output": str(made.output),
        "bytes": made.bytes,
        "decoded_layers": made.decoded,
        "left_out": list(made.left_out),
    }
    lines = [f"{made.output}: {size(made.bytes)}, {made.decoded} layers decoded."]
    output.result(values, [*lines, *(f"  {sentence}." for sentence in made.left_out)])
    return 0
