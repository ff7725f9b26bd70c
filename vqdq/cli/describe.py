"""What a model is made of, and which recipe fits a card: facts and estimates, no work."""

from __future__ import annotations

import argparse

from vqdq.cli.checks import asking
from vqdq.cli.terminal import Output, size, table


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
                        f"{part.dtype}, {part.quantized}" if part.quantized else part.dtype,
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
    output.result(found.to_json(), lines)
    return 0
