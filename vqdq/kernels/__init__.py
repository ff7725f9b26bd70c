"""The few inner loops that decide the speed, each declared once and implemented twice.

`reference` (plain torch) is the definition of truth; `cpu` (numba) returns the same bits faster,
and so does `triton` for tensors on a card.
Every operation here is exact: inputs are integers, or floats whose sums and products are exact, or
elementwise IEEE arithmetic in a stated order. So what is stored never depends on the kernel, the
number of threads or the machine. (`statistics`, which store nothing, say where they are not.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vqdq.kernels import backend, int8, int8_products, statistics
from vqdq.kernels.int8 import add_rows as add_rows
from vqdq.kernels.int8 import group_codes as group_codes
from vqdq.kernels.int8 import line_extremes as line_extremes
from vqdq.kernels.int8 import own_codes as own_codes
from vqdq.kernels.int8 import row_codes as row_codes
from vqdq.kernels.int8 import scaled_rows as scaled_rows
from vqdq.kernels.int8 import stacked_codes as stacked_codes
from vqdq.kernels.int8 import summed_groups as summed_groups
from vqdq.kernels.statistics import add_codes as add_codes
from vqdq.kernels.statistics import add_counts as add_counts
from vqdq.kernels.statistics import add_sketch as add_sketch
from vqdq.kernels.statistics import bin_quantiles as bin_quantiles
from vqdq.kernels.statistics import block_statistics as block_statistics
from vqdq.kernels.statistics import score_counts as score_counts
from vqdq.kernels.triton import support

PRODUCTS = "integer_products"
OPERATIONS = (
    "pack_bits",
    "unpack_bits",
    "hadamard",
    "grid_errors",
    "table_errors",
    "feed_forward",
    "round_columns",
    "trellis_encode",
    "trellis_feedback",
    "trellis_decode",
    "trellis_weight",
    "additive_encode",
    "additive_feedback",
    "additive_decode",
    "additive_decode_rotated",
    "additive_gradient",
    *int8.OPERATIONS,
    *statistics.OPERATIONS,
    PRODUCTS,
)
COST_UNITS = 8  # trellis targets are given in 1/8 of a table step
# One of each compiled shape of the search: 2k = L, 2k + 2 = L, and what is wider.
TRELLIS_FORMS = ((2, 8), (3, 8), (3, 10), (4, 8), (4, 10), (4, 12), (5, 10), (5, 12), (6, 12))


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelStatus:
    """Which implementation an operation uses, and why."""

    op: str
    backend: str
    reason: str


def status() -> tuple[KernelStatus, ...]:
    """Returns the implementation chosen for every operation, and for those of a card."""
    module, reason = backend.chosen("vqdq.kernels.cpu", "vqdq.kernels.reference")
    name = module.__name__.rsplit(".", 1)[-1]
    ours = [KernelStatus(op=op, backend=name, reason=reason) for op in OPERATIONS[:-1]]
    product, why = int8_products.support()
    cards = [KernelStatus(op=op, backend=name, reason=why) for op, name, why in support.status()]
    return (*ours, KernelStatus(op=PRODUCTS, backend=product or "none", reason=why), *cards)


def warm() -> None:
    """Compiles every kernel, or loads it from the cache, so that no later call waits for it."""
    levels = torch.zeros((48, 16), dtype=torch.int16)
    for bits, state_bits in TRELLIS_FORMS:
        table = torch.zeros(1 << state_bits, dtype=torch.int8)
        codes = trellis_encode(levels[:8, :1], table, bits)
        trellis_feedback(torch.zeros(8, 1), torch.ones(8), torch.eye(1), table, bits)
        trellis_decode(codes, table, bits, 8)
    for block in (1, 16, 32, 64, 128, 256):
        wide = torch.zeros((3, block), dtype=torch.uint8)
        small = torch.zeros(256, dtype=torch.int8)
        trellis_weight(wide, small, 3, torch.ones(8), torch.ones(block), block)
    codebooks = torch.zeros((2, 256, 8), dtype=torch.int16)
    picked = additive_encode(levels.reshape(-1, 8), codebooks, 2)
    metric = torch.eye(8).repeat(17, 1, 1)  # two blocks of columns
    additive_feedback(torch.zeros(2, 136), torch.eye(136), metric, codebooks, 2)
    decoded = additive_decode(picked, codebooks.float(), torch.ones(48), 2)
    turned = torch.zeros(2, 256, 8)
    additive_decode_rotated(picked, turned, torch.ones(48), 2, 16, torch.ones(16))
    additive_gradient(picked, decoded, torch.ones(48), (2, 256, 8))
    unpack_bits(pack_bits(torch.zeros(8, dtype=torch.uint8), 3), 3, 8)
    hadamard(torch.zeros(16, 16), 16)
    grid_errors(torch.zeros(16, 16), torch.ones(16, 3), torch.zeros(16, 3), 7)
    table_errors(torch.zeros(16, 16), torch.ones(16, 3), torch.arange(4.0))
    rest = feed_forward(torch.zeros(2, 16), torch.zeros(9, 16), torch.zeros(9, 2))
    grid, group = torch.ones(1, 16), torch.zeros(2, dtype=torch.int32)
    round_columns(rest, rest, torch.eye(2), grid, grid, group, torch.arange(4.0))
    int8.warm()
    statistics.warm()
    int8_products.support()


def pack_bits(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns `vqdq.packing.pack(values, bits)` for uint8 values of 1 to 8 bits.

    Raises:
        UserError: bits out of range or a value that does not fit.
    """
    return _run("pack_bits", values, bits)


def unpack_bits(stream: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Returns the first `count` values of a stream of `bits` <= 8 bit integers, uint8 [count].

    Raises:
        UserError: bits out of range or a stream that is too short.
    """
    return _run("unpack_bits", stream, bits, count)


def hadamard(x: torch.Tensor, block: int) -> torch.Tensor:
    """Returns x with every run of `block` columns multiplied by the orthonormal Hadamard matrix.

    Butterflies in float32 with strides 1, 2, 4, …, then one multiplication by block**-0.5: the
    order of additions is part of the definition, so that every implementation gives the same bits.

    Args:
        x: float32 [rows, columns].
        block: a power of two that divides the columns.
    """
    return _run("hadamard", x, block)


def grid_errors(
    groups: torch.Tensor, steps: torch.Tensor, zeros: torch.Tensor, highest: int
) -> torch.Tensor:
    """Returns the squared error of rounding groups to each of n even grids, float64 [groups, n].

    The error is added up in float64 from the first weight to the last, so every implementation
    gives the same bits. A step of 0 rounds everything to 0.

    Args:
        groups: float32 [groups, size].
        steps, zeros: float32 [groups, n]; a grid has the values (code - zero) * step.
        highest: the largest code; the smallest is 0.
    """
    return _run("grid_errors", groups, steps, zeros, highest)


def table_errors(groups: torch.Tensor, steps: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Returns the squared error of rounding groups to a table at n scales, float64 [groups, n].

    Rounded as by `round_columns`; added up in float64 from the first weight to the last.

    Args:
        groups: float32 [groups, size].
        steps: float32 [groups, n], candidate scales of each group.
        table: float32 levels in ascending order, at most 256.
    """
    return _run("table_errors", groups, steps, table)


def feed_forward(targets: torch.Tensor, errors: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """Returns targets + unitᵀ errors: what rounded columns hand to the columns after them.

    Float32 products are added from the first rounded column to the last, each product rounded
    before it is added, so every implementation gives the same bits and blocks may be cut anywhere.

    Args:
        targets: float32 [n, rows], columns of a weight still to be rounded (transposed).
        errors: float32 [m, rows], what the m columns before them lost.
        unit: float32 [m, n], R_ij / R_jj of `vqdq.codecs.feedback`.
    """
    return _run("feed_forward", targets, errors, unit)


def round_columns(
    targets: torch.Tensor,
    weight: torch.Tensor,
    unit: torch.Tensor,
    steps: torch.Tensor,
    zeros: torch.Tensor,
    group: torch.Tensor,
    table: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns codes uint8 [n, rows] of a block of columns, and errors weight − value, float32.

    Columns are rounded in turn to the nearest (table[code] − zero) * step, by t / step + zero in
    float32 (the lower code at a tie), and each error goes to the targets of the later columns as in
    `feed_forward`. A step of 0 gives the value 0.

    Args:
        targets: float32 [n, rows], a transposed block, fed by all columns before it.
        weight: float32 [n, rows], the weight itself: errors are counted from it.
        unit: float32 [n, n], unit upper triangular; the identity rounds every column by itself.
        steps, zeros: float32 [groups, rows].
        group: the row of `steps` and `zeros` that each column uses, int [n].
        table: float32 levels in ascending order, at most 256.
    """
    return _run("round_columns", targets, weight, unit, steps, zeros, group, table)


def trellis_encode(targets: torch.Tensor, table: torch.Tensor, bits: int) -> torch.Tensor:
    """Returns tail-biting trellis codes of every column, uint8 [ceil(rows*bits/8), columns].

    A column is cut into sequences of 256 rows (the last takes the remainder), whose streams of
    rows*bits bits follow one another, bit i in byte i // 8 at position i % 8. Each is circular. Row
    r of a sequence is reproduced by table[state], its state being the log2(len(table)) bits that
    start at bit r*bits (QTIP, arXiv 2406.11235, sections 3.1 and 3.2; there the window ends at the
    weight, here it starts there). Viterbi minimises the squared error; `trellis_reference` defines
    the search to the last tie.

    Args:
        targets: int16 [rows, columns] in 1/8 of a table step, clamped to ±255 steps; at least one
            state per column, so rows*bits >= log2(len(table)).
        table: int8 [2**state_bits], the reproduction values in table steps; 2*bits <= state_bits
            <= 16.
        bits: 2 to 6 bits per weight. (8 make no sense with a table of 8 bits.)
    """
    return _run("trellis_encode", targets, table, bits)


def trellis_feedback(
    weight: torch.Tensor,
    scales: torch.Tensor,
    unit: torch.Tensor,
    table: torch.Tensor,
    bits: int,
) -> torch.Tensor:
    """Returns codes as `trellis_encode`, each column making good what the ones before it lost.

    Column j is rounded towards w_j + Σ_{i<j} (w_i − scales·levels_i) unit_ij (LDLQ, arXiv
    2307.13304, section 3). Float32 products are added in the order of i, each rounded before it is
    added, and targets are rounded to 1/8 of a table step, halves to even: every implementation and
    any number of threads gives the same bits. So do several layers at once, with a first dimension
    for them in all three tensors and in the codes: on a card one search settles a column of each.

    Args:
        weight: float32 [rows, columns].
        scales: float32 [rows], what one table step stands for; a row of 0 stays 0.
        unit: float32 [columns, columns]; entries above the diagonal are used.
        table, bits: see `trellis_encode`.
    """
    return _run("trellis_feedback", weight, scales, unit, table, bits)


def trellis_decode(codes: torch.Tensor, table: torch.Tensor, bits: int, rows: int) -> torch.Tensor:
    """Returns the table values that `trellis_encode` chose, int8 [rows, columns]."""
    return _run("trellis_decode", codes, table, bits, rows)


def trellis_weight(
    codes: torch.Tensor,
    table: torch.Tensor,
    bits: int,
    scales: torch.Tensor,
    signs: torch.Tensor,
    block: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Returns diag(scales) levels H diag(signs), [rows, columns].

    The Hadamard sums of the levels are exact integers; they are multiplied by scales · block**-0.5
    (rounded to float32 once) and by the signs, in float32, and rounded to `dtype` at the end.

    Args:
        codes, table, bits: see `trellis_encode`.
        scales: float32 [rows], what one table step stands for.
        signs: float32 [columns], ±1.
        block: of the Hadamard matrix, a power of two that divides the columns; at most 256.
    """
    return _run("trellis_weight", codes, table, bits, scales, signs, block, dtype)


def additive_encode(vectors: torch.Tensor, codebooks: torch.Tensor, beam: int) -> torch.Tensor:
    """Returns the codes of the sums of codewords nearest to each vector, uint8 [n, num_codebooks].

    Beam search in the order of the codebooks (VQDM, arXiv 2409.00492, section 3; AQLM, arXiv
    2401.06118, section 3.3). Integers keep it exact; `reference.additive_encode` defines ties.

    Args:
        vectors: int16 [n, dim], on the grid of the codebooks.
        codebooks: int16 [num_codebooks, codewords, dim]; 16 to 256 codewords, a multiple of 16.
        beam: partial sums kept after each codebook, 1 to 32.
    """
    return _run("additive_encode", vectors, codebooks, beam)


def additive_feedback(
    weight: torch.Tensor,
    unit: torch.Tensor,
    metric: torch.Tensor,
    codebooks: torch.Tensor,
    beam: int,
) -> torch.Tensor:
    """Returns additive codes chosen with error feedback, uint8 [rows*groups, num_codebooks].

    Groups of columns are encoded from the first to the last. Group G is encoded towards w_G plus
    the errors of the groups before it times `unit`, and its distance is |(target − sum) metric_G|.
    Targets and codewords under the metric are rounded to integers and searched as by
    `additive_encode`; what is fed back is summed in float32 in the order of the columns, so that
    every implementation gives the same bits.

    Args:
        weight: float32 [rows, groups*dim] in grid units.
        unit: float32 [columns, columns]; entries above the diagonal groups are used.
        metric: float32 [groups, dim, dim], with columns of length at most 1.
        codebooks: int16 [num_codebooks, codewords, dim].
        beam: partial sums kept after each codebook, 1 to 32.
    """
    seen = torch.zeros(len(metric), *codebooks.shape, device=codebooks.device)
    wide = codebooks.float()
    for index in range(codebooks.shape[2]):  # in a stated order, not a matrix product
        seen += wide[None, :, :, index, None] * metric[:, None, None, index, :]
    under = seen.round().clamp(-768, 768).to(torch.int16)
    return _run("additive_feedback", weight, unit, metric, codebooks, under, beam)


def additive_decode(
    codes: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    groups: int,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Returns the weight that additive codes stand for, [rows, groups*dim], rounded to `dtype`.

    Args:
        codes: uint8 [rows*groups, num_codebooks].
        codebooks: float32 [num_codebooks, 256, dim] with sums that are exact; dim 4, 8 or 16.
        scales: float32 [rows].
        groups: vectors per row.
    """
    return _run("additive_decode", codes, codebooks, scales, groups, dtype)


def additive_decode_rotated(
    codes: torch.Tensor,
    codebooks: torch.Tensor,
    scales: torch.Tensor,
    groups: int,
    block: int,
    signs: torch.Tensor,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Returns `additive_decode` un-rotated by blocks of columns, [rows, groups*dim].

    Butterflies of sums on the grid are exact in any order; each is multiplied by
    scales[row] * block**-0.5, rounded to float32, and by its column's sign.

    Args:
        codes, scales, groups: as for `additive_decode`.
        codebooks: float32 [num_codebooks, codewords, dim], multiples of 1/128 below 16.
        block: a power of two, a multiple of dim that divides the columns.
        signs: +1 or -1, float32 [groups*dim].
    """
    args = (codes, codebooks, scales, groups, block, signs, dtype)
    return _run("additive_decode_rotated", *args)


def additive_gradient(
    codes: torch.Tensor, gradient: torch.Tensor, scales: torch.Tensor, shape: tuple[int, int, int]
) -> torch.Tensor:
    """Returns the adjoint of `additive_decode` in its codebooks, float32 `shape`.

    Entry [m, k] is the sum of scales[row] * gradient over the vectors whose m-th code is k, added
    up in float64 from the first vector to the last.

    Args:
        codes: uint8 [rows*groups, num_codebooks].
        gradient: float32 [rows, groups*dim], of a loss by the decoded weight.
        scales: float32 [rows].
        shape: (num_codebooks, codewords, dim) of the codebooks.
    """
    return _run("additive_gradient", codes, gradient, scales, shape)


def _run(op: str, *args: Any) -> Any:
    return backend.run(op, "vqdq.kernels.cpu", "vqdq.kernels.reference", *args)
