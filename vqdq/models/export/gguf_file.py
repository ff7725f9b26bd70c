"""A `.gguf` file of the denoiser, as ComfyUI-GGUF and diffusers read it.

These programs decode only ggml's own block formats, so the decoded weights are quantized once more,
which loses more: the added error is measured on every tensor and said. Matrices inside the blocks
take the format's type; rows that are no whole number of blocks, convolutions, and what stands
outside of the blocks stay F16, one-dimensional tensors F32.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from vqdq.durable import publish
from vqdq.errors import UserError
from vqdq.models.export.decoded import Decoded, differs, digest
from vqdq.models.export.latent_diffusion import UNET
from vqdq.models.export.layout import Piece
from vqdq.models.export.made import Made, part_of, writing
from vqdq.models.export.original import Original
from vqdq.models.sources import Source
from vqdq.progress import Event, Report
from vqdq.tensors import TensorSpec

TYPES = ("f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
_SMALL = 1024  # weights; smaller tensors gain nothing


def write(source: Source, layout: Original, target: Path, name: str, report: Report) -> Made:
    """Writes the decoded denoiser with ggml's type `name`; see `vqdq.models.export`."""
    gguf = library()
    logging.getLogger("gguf.gguf_writer").setLevel(logging.WARNING)
    kind = gguf.GGMLQuantizationType[name.upper()]
    ((model, made),) = layout.pieces(source, whole=False)
    found = {_key(piece.key, layout): piece for piece in made}
    specs = {key: piece.spec(model.specs) for key, piece in found.items()}
    kinds = {key: _kind(gguf, kind, spec, layout) for key, spec in specs.items()}
    part = part_of(target)
    needed = sum(_bytes(gguf, spec, kinds[key]) for key, spec in specs.items())
    try:
        with writing(target, needed):
            lost = _written(gguf, part, layout, kind, found, specs, kinds, model, report)
            size = part.stat().st_size
            publish(part, target)
    finally:
        part.unlink(missing_ok=True)
    counts = Counter(kind.name for kind in kinds.values())
    return Made(
        bytes=size,
        decoded=model.decoded,
        left_out=(*model.left_out, *lost.sentences(kind.name)),
        error_db=lost.decibels,
        kinds=tuple(counts.most_common()),
    )


def library() -> ModuleType:
    """Returns the `gguf` package.

    Raises:
        UserError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise UserError(
            "the package gguf is not installed.",
            where="--format",
            remedy="Run `pip install gguf`, or export as single-file or diffusers-fp16.",
        ) from error
    return gguf


class _Lost:
    """Sums of what a second quantization costs."""

    def __init__(self) -> None:
        self.error = self.energy = 0.0
        self.worst: tuple[float, str] = (-math.inf, "")

    def add(self, key: str, before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> None:
        error = float(np.square(before - after, dtype=np.float64).sum())
        energy = float(np.square(before, dtype=np.float64).sum())
        self.error, self.energy = self.error + error, self.energy + energy
        if error > 0:
            self.worst = max(self.worst, (10 * math.log10(error / energy), key))

    @property
    def decibels(self) -> float | None:
        if self.error == 0:
            return None
        return 10 * math.log10(self.error / self.energy)

    def sentences(self, name: str) -> tuple[str, ...]:
        if self.decibels is None:
            return ()
        return (
            f"{name} rounds the decoded weights once more: an error of {self.decibels:.1f} dB is"
            f" added, at most {self.worst[0]:.1f} dB in one tensor ({self.worst[1]})",
        )


def _written(
    gguf: ModuleType,
    part: Path,
    layout: Original,
    kind: Any,
    found: Mapping[str, Piece],
    specs: Mapping[str, TensorSpec],
    kinds: Mapping[str, Any],
    model: Decoded,
    report: Report,
) -> _Lost:
    writer = gguf.GGUFWriter(path=None, arch=layout.architecture)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind.name}"])
    for key, spec in specs.items():
        bytes_ = _bytes(gguf, spec, kinds[key])
        writer.add_tensor_info(key, spec.shape, np.dtype(np.float32), bytes_, raw_dtype=kinds[key])
    writer.write_header_to_file(path=part)
    lost, sums = _Lost(), dict[str, bytes]()
    try:
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for done, (key, piece) in enumerate(found.items()):
            report(Event(stage="decode", done=done, total=len(found), message=key))
            values = piece.build(model.read).to(torch.float32).numpy()
            stored = gguf.quants.quantize(values, kinds[key])
            if kinds[key] is kind:
                lost.add(key, values, gguf.quants.dequantize(stored, kind))
            sums[key] = digest(np.ascontiguousarray(stored).data.cast("B"))
            writer.write_tensor_data(stored)
        writer.flush()
    finally:
        writer.close()
    for done, tensor in enumerate(gguf.GGUFReader(part).tensors):
        report(Event(stage="check", done=done, total=len(found), message=tensor.name))
        shape = tuple(int(size) for size in reversed(tensor.shape))
        same = digest(np.ascontiguousarray(tensor.data).data.cast("B")) == sums.pop(tensor.name)
        if (
            not same
            or tensor.tensor_type is not kinds[tensor.name]
            or shape != specs[tensor.name].shape
        ):
            raise differs(tensor.name)
    if sums:
        raise differs(next(iter(sums)))
    report(Event(stage="check", done=len(found), total=len(found)))
    return lost


def _key(key: str, layout: Original) -> str:
    """diffusers finds a UNet's tensors by their prefix, and a transformer's without one."""
    return key if layout.architecture in ("sd1", "sdxl") else key.removeprefix(UNET)


def _kind(gguf: ModuleType, kind: Any, spec: TensorSpec, layout: Original) -> Any:
    types = gguf.GGMLQuantizationType
    size = math.prod(spec.shape)
    if len(spec.shape) < 2 or size <= _SMALL:
        return types.F32
    outer = spec.name.removeprefix(UNET).startswith(layout.outer)
    block = gguf.GGML_QUANT_SIZES[kind][0]
    fits = len(spec.shape) == 2 and spec.shape[1] % block == 0
    return kind if fits and not outer else types.F16


def _bytes(gguf: ModuleType, spec: TensorSpec, kind: Any) -> int:
    block, width = gguf.GGML_QUANT_SIZES[kind]
    return math.prod(spec.shape) // block * width
