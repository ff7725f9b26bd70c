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
from vqdq.models.parts import parts
from vqdq.models.sources import Source
from vqdq.progress import Report


def write(source: Source, target: Path, report: Report) -> Made:
    """Writes the decoded model as a diffusers folder in float16; see `vqdq.models.export`."""
    known = parts(source)
    names = {source.denoiser: WEIGHTS} | {
        name: known[name].weight_name for name in packed_parts(source)
    }
    models = {name: Decoded(source.folder / name) for name in names}
    others = [name for name in names if name != source.denoiser]
    part = part_of(target)
    needed = component_bytes(source, others) + sum(
        spec.num_bytes for model in models.values() for spec in model.specs.values()
    )
    sizes: dict[str, int] = {}
    try:
        with writing(target, needed):
            part.mkdir(parents=True)
            copy_components(source, part, others)
            for name, model in models.items():
                place = part / name
                place.mkdir(exist_ok=True)
                sizes[name] = write_checked(place / names[name], model.specs, model.read, report)
                config = json.dumps(model.config, indent=2, sort_keys=True)
                write_text(place / "config.json", config + "\n")
            write_text(part / "README.md", _card(source))
            publish(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Made(
        bytes=sizes[source.denoiser],
        decoded=sum(model.decoded for model in models.values()),
        left_out=tuple(said for model in models.values() for said in model.left_out),
    )


def _card(source: Source) -> str:
    return (
        "---\nlibrary_name: diffusers\npipeline_tag: text-to-image\n---\n\n"
        f"# {source.name}, decoded\n\n"
        "Weights of a model that was compressed with vqdq, decoded to float16: as large as the"
        " original, with the values of the compressed one.\n"
    )
