"""What a model is made of, and which recipe fits a card: facts and estimates, no work."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING

from vqdq.cli.checks import asking
from vqdq.cli.terminal import Output, table
from vqdq.quantities import size

if TYPE_CHECKING:
    from vqdq.models.fit_options import FitOption


def run(options: argparse.Namespace, output: Output) -> int:
    """Says what a model is made of; reads headers only."""
    from vqdq.models import inventory, sources

    with asking():
        sources.locate(options.model, report=output.report)
    found = inventory.inventory(options.model)
    pixels = " × ".join(str(side) for side in found.resolution or ())
    lines = [
        f"{found.title}, {found.pipeline_class}" + (f", {pixels} pixels" if pixels else ""),
        f"  {found.parameters / 1e6:,.1f} million parameters, {size(found.bytes)} on the disk",
        "",
        *table(
            [
                ("component", "class", "parameters", "convolutions", "stored as", "on the disk"),
                *(
                    (
                        part.name,
                        part.kind,
                        f"{part.census.parameters / 1e6:,.1f} M",
                        f"{100 * part.census.convolution_share:.1f} %",
                        ", ".join(filter(None, (part.dtype or "missing", part.quantized))),
                        size(part.bytes),
                    )
                    for part in found.parts
                ),
            ]
        ),
        "",
        *table(
            [
                ("largest layers", "shape", "weights", "stored"),
                *(
                    (
                        f"{layer.component}.{layer.name}",
                        " × ".join(map(str, layer.shape)),
                        f"{layer.weights / 1e6:.2f} M",
                        size(layer.bytes),
                    )
                    for layer in found.largest
                ),
            ]
        ),
    ]
    if found.missing:
        lines += ["", f"Missing: {', '.join(found.missing)}. {found.to_complete}"]
    output.result(found.to_json(), lines)
    return 0


def fit(options: argparse.Namespace, output: Output) -> int:
    """Says which recipes are predicted to fit a card, the best quality first."""
    from vqdq.models import fit as fits
    from vqdq.models import inventory, sources

    with asking():
        sources.locate(options.model, report=output.report)
        found = inventory.inventory(options.model)
        card = fits.card_bytes(options.card or "")
        own = max(found.resolution or (0,))
        resolution = options.resolution or own or 512
        ways = fits.fit(found, card, resolution)
    lines = [f"{found.title} on {size(card)}, pictures of {resolution} × {resolution}"]
    for way in ways:
        verdict = "" if way.fits else "DOES NOT FIT: "
        lines += ["", f"  {verdict}{way.title}", f"    {way.sum}", f"    {' '.join(way.reasons)}"]
        if way.recipe:
            lines += [f"    {_command(options, way)}", f"    {way.opening}"]
    if not ways[0].fits:
        lines.append("  Nothing fits: this is what takes the least.")
    values = {
        "model": options.model,
        "card_bytes": card,
        "resolution": resolution,
        "options": [way.to_json() for way in ways],
    }
    output.result(values, lines)
    return 0


def _command(options: argparse.Namespace, way: FitOption) -> str:
    """The command that makes it, and what its files will weigh."""
    words = ["vqdq", "compress", options.model, "--recipe", way.recipe]
    words += [word for wish in way.also for word in ("--also", wish)]
    return f"{shlex.join(words)} --output DIR  # {size(sum(way.file_bytes.values()))}"
