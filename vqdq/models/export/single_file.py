"""One `.safetensors` file in the layout of the model's first authors, in float16.

What stands in it is what the family's programs expect: Stable Diffusion 1, 2 and SDXL and 3 whole,
with their autoencoder and text encoders; FLUX.1 and AuraFlow as the transformer alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vqdq.durable import publish
from vqdq.models.export.decoded import Decoded, write_checked
from vqdq.models.export.layout import Piece
from vqdq.models.export.made import Made, part_of, writing
from vqdq.models.export.original import Original
from vqdq.models.sources import Source
from vqdq.progress import Report
from vqdq.tensors import TensorSpec


def write(source: Source, layout: Original, target: Path, report: Report) -> Made:
    """Writes the decoded model as one file; see `vqdq.models.export`."""
    found: dict[str, tuple[Decoded, Piece]] = {}
    left_out: list[str] = []
    decoded = 0
    for component, made in layout.pieces(source, whole=True):
        found |= {piece.key: (component, piece) for piece in made}
        left_out += component.left_out
        decoded += component.decoded
    specs: dict[str, TensorSpec] = {
        key: piece.spec(component.specs) for key, (component, piece) in found.items()
    }
    part = part_of(target)
    try:
        with writing(target, sum(spec.num_bytes for spec in specs.values())):
            size = write_checked(
                part, specs, lambda key: found[key][1].build(found[key][0].read), report
            )
            publish(part, target)
    finally:
        part.unlink(missing_ok=True)
    said = (*left_out, *_beside(source, layout))
    return Made(bytes=size, decoded=decoded, left_out=said)


def _beside(source: Source, layout: Original) -> list[str]:
    said: list[str] = []
    if layout.apart:
        said.append(
            f"{_listed(layout.apart)} {'is' if len(layout.apart) == 1 else 'are'} not in the file:"
            " programs for this family load them from files of their own"
        )
    kind = _prediction(source.folder / "scheduler" / "scheduler_config.json")
    if kind not in (None, "epsilon"):
        said.append(f"the scheduler's {kind} has no place in the file: choose it in the program")
    return said


def _prediction(path: Path) -> str | None:
    values: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return values.get("prediction_type")


def _listed(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
