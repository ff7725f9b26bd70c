"""A layer's weight as it was and as it is stored: values, codes in use, error of each row."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

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


def weight_record(name: str, reference: nn.Module, variant: nn.Module) -> WeightRecord:
    """Returns the weights of one layer in two models, the reference's and a compressed one's."""
    matrix = to_matrix(_weight(reference)).detach().float().cpu()
    packed = variant.packed if isinstance(variant, QuantizedLayer) else None
    stored = to_matrix(_weight(variant)).detach().float().cpu()
    top = max(float(matrix.abs().max()), 1e-12)
    edges = np.linspace(-top, top, _CELLS + 1)
    error = (matrix - stored).double().square().sum(1).numpy()
    power = matrix.double().square().sum(1).numpy()
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


def _counts(matrix: Tensor, edges: Floats) -> Counts:
    return np.histogram(np.clip(matrix.numpy(), edges[0], edges[-1]), edges)[0].astype(np.int64)
