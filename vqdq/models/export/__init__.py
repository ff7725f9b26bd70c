"""A compressed folder in a form that programs open which do not know ours.

One tensor is in memory at a time, every output is read back and compared before it gets its name,
and what a format cannot say is listed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vqdq.errors import UserError
from vqdq.models.checkpoint import packed_config
from vqdq.models.export import folder as diffusers_folder
from vqdq.models.export import gguf_file, single_file
from vqdq.models.export.original import original
from vqdq.models.partial import refuse_existing
from vqdq.models.sources import locate
from vqdq.params import nearest
from vqdq.places import expanded
from vqdq.progress import Report, silent

FOLDER, SINGLE, GGUF = "diffusers-fp16", "single-file", "gguf-"
FORMATS = (FOLDER, SINGLE, *(GGUF + name for name in gguf_file.TYPES))


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        output: the folder or file.
        format: one of `FORMATS`.
        bytes: of the file with the denoiser; decoded: how many layers were decoded.
        left_out: what the format cannot say, one sentence each.
        error_db: what quantizing the decoded weights again added; None where nothing was lost.
        kinds: (type, number of tensors) of a GGUF file.
    """

    output: Path
    format: str
    bytes: int
    decoded: int
    left_out: tuple[str, ...]
    error_db: float | None
    kinds: tuple[tuple[str, int], ...]


def export_folder(
    folder: str | Path, output: str | Path, *, format: str = FOLDER, report: Report = silent
) -> Exported:
    """Writes the decoded model in another program's format.

    The output appears by one rename, complete and read back, or not at all.

    Args:
        format: "diffusers-fp16", an ordinary folder; "single-file", the original layout in one
            `.safetensors`; "gguf-f16", "gguf-q8_0", …, the denoiser quantized by ggml's rules.
        report: stages "decode" and "check", one unit a tensor; may raise `Cancelled`.

    Raises:
        UserError: no compressed folder, a damaged one, a format that its family does not have, an
            output that exists or has another ending, or a full disk.
    """
    target = expanded(output).absolute()
    refuse_existing(target)
    source = locate(folder)
    packed_config(source)
    check(folder, target, format)
    if format == FOLDER:
        made = diffusers_folder.write(source, target, report)
    else:
        layout = original(source)
        assert layout is not None
        if format == SINGLE:
            made = single_file.write(source, layout, target, report)
        else:
            name = format.removeprefix(GGUF)
            made = gguf_file.write(source, layout, target, name, report)
    return Exported(
        output=target,
        format=format,
        bytes=made.bytes,
        decoded=made.decoded,
        left_out=made.left_out,
        error_db=made.error_db,
        kinds=made.kinds,
    )


def formats_of(folder: str | Path) -> tuple[str, ...]:
    """Returns the formats that a model can have.

    Raises:
        UserError: no diffusers folder.
    """
    return FORMATS if original(locate(folder)) is not None else (FOLDER,)


def check(folder: str | Path, output: str | Path, format: str) -> None:
    """Raises `UserError` for a format that is unknown, not the family's or lacks its package, or

    an output that does not end as the format's files do.
    """
    if format not in FORMATS:
        remedy = nearest(format, FORMATS, "format")
        raise UserError(f'unknown format "{format}".', where="--format", remedy=remedy)
    able = formats_of(folder)
    if format not in able:
        kind = locate(folder).config.get("_class_name")
        raise UserError(
            f"{kind} has no original layout that can be written; {format} is not possible.",
            where=str(folder),
            remedy=f"Use {', '.join(able)}.",
        )
    if format.startswith(GGUF):
        gguf_file.library()
    ending = ".gguf" if format.startswith(GGUF) else ".safetensors" if format == SINGLE else None
    name = Path(output).name
    if ending is not None and not name.endswith(ending):
        raise UserError(
            f"the name of this format ends in {ending}.",
            where=str(output),
            remedy=f"Use {name}{ending}.",
        )
