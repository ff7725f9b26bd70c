"""`vqdq push`: a compressed folder sent to the hub, with its card."""

from __future__ import annotations

import argparse

from vqdq.cli.checks import asking
from vqdq.cli.terminal import Output
from vqdq.quantities import size


def run(options: argparse.Namespace, output: Output) -> int:
    """Sends the folder, or says what would be sent."""
    from vqdq.models import checkpoint, sources
    from vqdq.models.push import parcel, push

    with asking():
        checkpoint.packed_config(sources.locate(options.folder))
    sent = parcel(options.folder, options.name, base_model=options.base_model, report=output.report)
    values = {"name": sent.name, "files": dict(sent.files), "bytes": sent.bytes}
    what = f"{len(sent.files)} files, {size(sent.bytes)}"
    if options.dry_run:
        rows = [f"  {size(count):>10}  {path}" for path, count in sent.files.items()]
        lines = [f"{sent.name}: {what} would be sent. Nothing was.", *rows]
        output.result(values | {"sent": False}, lines)
        return 0
    made = push(sent, private=options.private, revision=options.revision, report=output.report)
    values |= {"sent": True, "url": made.url, "commit": made.commit, "private": made.private}
    seen = "private" if made.private else "public"
    output.result(values, [f"{made.url} ({seen}): {what}, commit {made.commit[:12]}."])
    return 0
