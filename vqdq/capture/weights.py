"""A layer's weight as it was and as it is stored: values, codes in use, error of each row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import vqdq.capture.archive as archive
from vqdq import codecs, kernels
from vqdq.codecs.additive import AdditiveCodec
from vqdq.codecs.base import Packed
from vqdq.codecs.scalar import ScalarCodec
from vqdq.codecs.trellis import TrellisCodec
from vqdq.layers.matrix import to_matrix
from vqdq.layers.quantized import QuantizedLayer

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
_CELLS = 128
_KIND, _VERSION = "weights", 1
_KEPT = {"reference": np.uint32, "variant": np.uint32, "row_error_db": np.float32, "use": np.uint32}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WeightRecord:
    """The weight of one layer.

    Attributes:
        name: the layer; `codec`: of the stored weight, "" when it is not packed.
        rows, columns: of the weight as a matrix.
        edges: of equal cells over the reference's range, [cells + 1].
        reference, variant: counts of the values in them, [cells]; the outer cells are open.
        row_error_db: 10 log10(‖w − ŵ‖² / ‖w‖²) of each row, [rows]; -inf when equal.
        use: how often each code occurs, [books, codes]: the codebooks of an additive weight, the
            levels of a trellis or scalar one; empty without codes.
        use_label: what the codes are.
    """

    name: str
    codec: str
    rows: int
    columns: int
    edges: Floats
    reference: Counts
    variant: Counts
    row_error_db: Floats
    use: Counts
    use_label: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WeightRecords:
    """The weights of all layers in which a variant differs from its reference, by layer.

    Attributes:
        records: in the order of the model; a layer that is not here stayed as it was.
    """

    records: Mapping[str, WeightRecord]

    def save(self, path: Path) -> None:
        """Writes the records to one `.npz` file, atomically; counts to 32 bits, errors to float32.

        All layers lie in one array a field, for a file of many small ones is mostly directory.
        """
        entries: list[dict[str, Any]] = []
        parts: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in _KEPT}
        for record in self.records.values():
            entry, arrays = archive.flatten(record, "")
            entry |= {"top": float(record.edges[-1]), "use": list(record.use.shape)}
            entries.append(entry)
            for name, kind in _KEPT.items():
                parts[name].append(arrays[f"/{name}"].astype(kind).reshape(-1))
        header = {"kind": _KIND, "version": _VERSION, "layers": entries}
        empty = np.zeros(0)
        joined = {
            name: np.concatenate([empty.astype(_KEPT[name]), *each]) for name, each in parts.items()
        }
        archive.save(path, header, joined)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Returns the records saved at `path`.

        Raises:
            UserError: no record, a damaged one, or one of another version.
        """
        header, arrays = archive.load(path, kind=_KIND, version=_VERSION)
        found: dict[str, WeightRecord] = {}
        at = dict.fromkeys(_KEPT, 0)
        for entry in header["layers"]:
            books, codes = entry["use"]
            sizes = {"reference": _CELLS, "variant": _CELLS, "row_error_db": entry["rows"]}
            taken: dict[str, npt.NDArray[Any]] = {}
            for name in _KEPT:
                size = sizes.get(name, books * codes)
                kind = np.float64 if name == "row_error_db" else np.int64
                taken[name] = arrays[name][at[name] : at[name] + size].astype(kind)
                at[name] += size
            found[entry["name"]] = WeightRecord(
                name=entry["name"],
                codec=entry["codec"],
                rows=entry["rows"],
                columns=entry["columns"],
                edges=_edges(entry["top"]),
                reference=taken["reference"],
                variant=taken["variant"],
                row_error_db=taken["row_error_db"],
                use=taken["use"].reshape(books, codes),
                use_label=entry["use_label"],
            )
        return cls(records=found)


def weight_records(
    reference: nn.Module, variant: nn.Module, *, each: Callable[[int, int, str], None] | None = None
) -> WeightRecords:
    """Returns the weights of all layers in which two denoisers of one architecture differ.

    Args:
        each: called before each layer with its number, how many there are, and its name.
    """
    theirs = dict(variant.named_modules())
    layers = [
        (name, layer)
        for name, layer in reference.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and name in theirs
    ]
    found: dict[str, WeightRecord] = {}
    for number, (name, layer) in enumerate(layers):
        if each is not None:
            each(number, len(layers), name)
        other = theirs[name]
        if isinstance(other, QuantizedLayer) or not torch.equal(_weight(layer), _weight(other)):
            found[name] = weight_record(name, layer, other)
    return WeightRecords(records=found)


def weight_record(name: str, reference: nn.Module, variant: nn.Module) -> WeightRecord:
    """Returns the weights of one layer in two models, the reference's and a compressed one's."""
    matrix = to_matrix(_weight(reference)).detach().float().cpu()
    packed = variant.packed if isinstance(variant, QuantizedLayer) else None
    stored = to_matrix(_weight(variant)).detach().float().cpu()
    edges = _edges(max(float(matrix.abs().max()), 1e-12))
    error = (matrix - stored).square().sum(1, dtype=torch.float64).numpy()
    power = matrix.square().sum(1, dtype=torch.float64).numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = 10 * np.log10(error / power)
    use, label = (np.zeros((0, 0), np.int64), "") if packed is None else code_use(packed)
    return WeightRecord(
        name=name,
        codec="" if packed is None else packed.codec,
        rows=len(matrix),
        columns=matrix.shape[1],
        edges=edges,
        reference=_counts(matrix, edges),
        variant=_counts(stored, edges),
        row_error_db=np.where(power > 0, relative, -math.inf),
        use=use,
        use_label=label,
    )


def code_use(packed: Packed) -> tuple[Counts, str]:
    """Returns how often each code of a packed weight occurs, [books, codes], and what they are.

    A trellis has no codebook of its own: its levels are the entries of the table that its windows
    select, in rising order. A codec of another kind gives [0, 0].
    """
    codec = codecs.create(packed.codec, packed.params)
    if isinstance(codec, TrellisCodec):
        levels = codec.levels(packed)[0].long()
        found = torch.bincount((levels + 128).reshape(-1), minlength=256)
        kept = found.nonzero().reshape(-1)
        return found[kept[0] : kept[-1] + 1].numpy()[None], "level of the trellis table"
    if isinstance(codec, AdditiveCodec):
        params = codec.params
        groups = packed.shape.count // params.group_size
        stored = packed.tensors["codes"].cpu()
        if params.codeword_bits < 8:
            count = groups * params.num_codebooks
            stored = kernels.unpack_bits(stored, params.codeword_bits, count)
        books = stored.reshape(-1, params.num_codebooks).T.long()
        size = 1 << params.codeword_bits
        return np.stack(
            [torch.bincount(book, minlength=size).numpy() for book in books]
        ), "codeword"
    if isinstance(codec, ScalarCodec):
        stored = packed.tensors["codes"].cpu()
        bits = stored.numel() * 8 // packed.shape.count
        codes = kernels.unpack_bits(stored, bits, packed.shape.count)
        return torch.bincount(codes.long(), minlength=1 << bits).numpy()[None], "level"
    return np.zeros((0, 0), np.int64), ""


def _weight(layer: nn.Module) -> Tensor:
    return (
        layer.dense(torch.float32)
        if isinstance(layer, QuantizedLayer)
        else layer.get_parameter("weight")
    )


def _edges(top: float) -> Floats:
    return np.linspace(-top, top, _CELLS + 1)


def _counts(matrix: Tensor, edges: Floats) -> Counts:
    top = float(edges[-1])
    return torch.histc(matrix.clamp(-top, top), _CELLS, -top, top).long().numpy()
