"""A compression in pieces that any process can do, anywhere, in any order: the same bytes come out.

What `compress_folder` does from beginning to end is cut where its work is independent: a batch of
calibration pictures, the statistics of some layers, the codes of some layers, and the folder that
is put together from them. A piece is a file that the whole would have written on its way; so a
model made of pieces equals one made in one go, byte for byte.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from vqdq.calibration import CalibrationParams
from vqdq.errors import UserError
from vqdq.models.calibration_folder import keep_part, write_parts
from vqdq.models.compressor import CompressionResult, compress_folder, ranges_of
from vqdq.models.input_ranges import smoothing_factors
from vqdq.models.kept_calls import batch_file
from vqdq.models.layerwise import Read, encoded
from vqdq.models.partial import SMOOTHING, Partial, partial_folder
from vqdq.models.pipelines import source_component
from vqdq.models.sources import Source, locate
from vqdq.models.teacher import BATCH, Teacher
from vqdq.models.weights import open_weights
from vqdq.progress import Report, silent
from vqdq.recipe import Plan, Recipe, resolve

__all__ = [
    "BATCH",
    "assemble",
    "content_digest",
    "encode_layers",
    "keep_part",
    "record_batch",
    "smoothing_file",
    "write_parts",
]

_DECIDING = (".json", ".txt", ".model", ".safetensors", ".jinja", ".vocab", ".spm")


def content_digest(model: str | Path) -> str:
    """Returns a digest of everything in a model's folder that decides what it does.

    Of names and contents alone, so it is the same wherever the folder lies and whenever it was
    copied. A file is read once, until its size or time changes.

    Raises:
        UserError: no such model, or a file cannot be read.
    """
    folder = locate(model).folder
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.suffix in _DECIDING and path.is_file() and not name.parts[0].startswith("."):
            facts = path.stat()
            content = _file_digest(path, facts.st_size, facts.st_mtime_ns)
            digest.update(f"{name.as_posix()} {content}\n".encode())
    return digest.hexdigest()


def record_batch(
    teacher: Teacher,
    params: CalibrationParams,
    start: int,
    folder: Path,
    *,
    report: Report = silent,
) -> Path:
    """Returns the file with the calls of one batch of calibration prompts, written to `folder`.

    Raises:
        UserError: this model's calls cannot be written to a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    teacher.keep_calibration_batch(params, start, folder, report)
    path = folder / batch_file(start)
    if not path.is_file():
        raise UserError(
            "the calls of its denoiser hold more than tensors and plain values.",
            where="calibration",
            remedy="Calibrate on one computer: `vqdq calibrate MODEL --output DIR`.",
        )
    return path


def smoothing_file(
    teacher: Teacher, model: str | Path, recipe: Recipe, folder: Path, *, report: Report = silent
) -> Path:
    """Returns the file with the factors of smoothed inputs by layer, written to `folder`."""
    source, plan = _planned(model, recipe)
    factors = smoothing_factors(plan, teacher, _reader(source), report)
    return Partial(folder=folder).keep_file(SMOOTHING, factors, {}).path


def encode_layers(
    model: str | Path,
    recipe: Recipe,
    names: Collection[str],
    folder: Path,
    *,
    calibration: Path | None = None,
    smoothing: Path | None = None,
    report: Report = silent,
    kept: Callable[[str, Path], None],
) -> None:
    """Encodes the named layers into files in `folder`.

    Args:
        calibration: folder with the statistics of these layers (`keep_part`, `write_parts`).
        smoothing: file of `smoothing_file`, where the recipe smooths inputs.
        kept: is told of each layer and its file as soon as it is written.

    Raises:
        UserError: a fault of the model or of the recipe; the layer is named.
    """
    source, plan = _planned(model, recipe)
    factors = {}
    if smoothing is not None:
        found = open_weights(smoothing)
        factors = {name: found.read(name) for name in found.tensors}
    (folder / "layers").mkdir(exist_ok=True)
    partial = Partial(folder=folder)
    numbers = {planned.layer.name: number for number, planned in enumerate(plan.layers)}
    layers = [planned for planned in plan.quantized if planned.layer.name in names]
    teacher = Teacher(model, calibration=calibration, ranges=ranges_of(plan))
    for planned, layer in encoded(plan, layers, _reader(source), teacher, factors, report):
        number = numbers[planned.layer.name]
        partial.keep(number, planned.layer.name, layer)
        kept(planned.layer.name, partial.kept(number))


def assemble(
    model: str | Path,
    recipe: Recipe,
    layers: Mapping[str, Path],
    output: Path,
    *,
    smoothing: Path | None = None,
    report: Report = silent,
) -> CompressionResult:
    """Returns the model that its encoded layers make, written to `output`; fine-tunes if asked to.

    Args:
        layers: the file of each layer that the recipe encodes.

    Raises:
        UserError: see `compress_folder`.
    """
    _, plan = _planned(model, recipe)
    partial = Partial(folder=partial_folder(output))
    (partial.folder / "layers").mkdir(parents=True)
    for number, planned in enumerate(plan.layers):
        if planned.method is not None:
            partial.adopt(number, layers[planned.layer.name])
    if smoothing is not None:
        partial.adopt_file(SMOOTHING, smoothing)
    return compress_folder(model, recipe, output, report=report)


def _planned(model: str | Path, recipe: Recipe) -> tuple[Source, Plan]:
    source = locate(model)
    return source, resolve(recipe, source_component(source))


def _reader(source: Source) -> Read:
    files = {key: file for file in source.weights() for key in file.tensors}
    return lambda key: files[key].read(key) if key in files else None


@functools.lru_cache(maxsize=4096)
def _file_digest(path: Path, size: int, changed: int) -> str:
    del size, changed  # parts of the key: a file that changed is read again
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
