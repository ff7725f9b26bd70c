"""An ordinary diffusers folder, for programs that do not know ours.

What is quantized besides weights (inputs, attention) is not part of an ordinary folder: it computes
in 16 bits again, and the person is told.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from vqdq.durable import publish, write_text
from vqdq.models.checkpoint import WEIGHTS, packed_parts
from vqdq.models.copying import component_bytes, copy_components
from vqdq.models.export.decoded import Decoded, write_checked
from vqdq.models.export.made import Made, part_of, writing
from vqdq.models.parts import Part, parts
from vqdq.models.sources import Source
from vqdq.progress import Report


def write(source: Source, target: Path, report: Report) -> Made:
    """Writes the decoded model as a diffusers folder in float16; see `vqdq.models.export`."""
    model = Decoded(source.folder / source.denoiser)
    others = {name: Decoded(source.folder / name) for name in packed_parts(source)}
    part = part_of(target)
    weights = [spec for each in (model, *others.values()) for spec in each.specs.values()]
    needed = sum(spec.num_bytes for spec in weights) + component_bytes(source, others)
    try:
        with writing(target, needed):
            place = part / source.denoiser
            place.mkdir(parents=True)
            size = write_checked(place / WEIGHTS, model.specs, model.read, report)
            write_text(
                place / "config.json", json.dumps(model.config, indent=2, sort_keys=True) + "\n"
            )
            copy_components(source, part, without=others)
            for name, other in others.items():
                _write_other(parts(source)[name], part / name, other, report)
            write_text(part / "README.md", _card(source))
            publish(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Made(bytes=size, left_out=model.left_out)


def _write_other(of: Part, place: Path, decoded: Decoded, report: Report) -> None:
    """Writes a component beside the denoiser decoded; everything but its weights is there."""
    write_checked(place / of.weight_name, decoded.specs, decoded.read, report)
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    del config["quantization_config"]
    write_text(place / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


def _card(source: Source) -> str:
    return (
        "---\nlibrary_name: diffusers\npipeline_tag: text-to-image\n---\n\n"
        f"# {source.name}, decoded\n\n"
        "Weights of a model that was compressed with vqdq, decoded to float16: as large as the"
        " original, with the values of the compressed one.\n"
    )
