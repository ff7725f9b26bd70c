"""The Viterbi search of the trellis, compiled: sixteen columns side by side in one vector.

LLVM does not find this shape by itself (0.4 to 1.1 M weights/s as plain loops), so the innermost
step is written as vector instructions: 3.3 to 5.7 M weights/s a core at 4096 states. It is
portable: LLVM splits the vectors on machines with narrower ones, and every number is an integer
below 2**24, so fused or not, the bits are the same.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

Array: TypeAlias = npt.NDArray[Any]

LANES = 16
_FLOAT, _INT, _LONG = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_FLOATS = ir.VectorType(_FLOAT, LANES)
_INTS = ir.VectorType(_INT, LANES)
_BYTES = ir.VectorType(ir.IntType(8), LANES)


def _make_step(bits: int) -> Any:
    """Returns an intrinsic that settles one overlap of the next row, for all lanes.

    It takes the cheapest of the 2**bits states that lead there, writes the choice (the bits that
    leave the window) and the new cost. Costs are multiples of 2**bits plus a tag, the low bits of
    their overlap, so one minimum finds both; costs are kept relative to the first overlap of the
    row before.
    """
    choices = 1 << bits

    @intrinsic
    def step(
        _typing: Any,
        cost_out: Any,
        decisions: Any,
        cost: Any,
        values: Any,
        x: Any,
        target: Any,
        low: Any,
        state: Any,
    ) -> Any:
        signature = types.void(cost_out, decisions, cost, values, x, target, low, state)

        def generate(context: Any, b: Any, call: Any, args: Any) -> Any:
            out, chosen, old, table, row = (
                context.make_array(kind)(context, b, value).data
                for kind, value in zip(call.args[:5], args[:5], strict=True)
            )
            target, low, state = args[5:]
            undefined = ir.Constant(_FLOATS, ir.Undefined)
            fused = cgutils.get_or_insert_function(
                b.module,
                ir.FunctionType(_FLOATS, [_FLOATS] * 3),
                f"llvm.fmuladd.v{LANES}f32",
            )

            def lanes(pointer: Any, index: Any, kind: Any) -> Any:
                place = b.gep(pointer, [b.mul(index, ir.Constant(_LONG, LANES))])
                return b.bitcast(place, kind.as_pointer())

            def load(pointer: Any, index: Any) -> Any:
                loaded = b.load(lanes(pointer, index, _FLOATS))
                loaded.align = 4
                return loaded

            def broadcast(scalar: Any) -> Any:
                first = b.insert_element(undefined, scalar, ir.Constant(_INT, 0))
                return b.shuffle_vector(first, undefined, ir.Constant(_INTS, [0] * LANES))

            zero = ir.Constant(_LONG, 0)
            here = load(row, zero)
            best: Any = None
            for choice in range(choices):
                offset = ir.Constant(_LONG, choice)
                value = broadcast(b.load(b.gep(table, [b.add(state, offset)])))
                error = b.fsub(here, value)
                total = b.call(fused, [error, error, load(old, b.add(low, offset))])
                best = total if best is None else _smaller(b, total, best)
            whole = b.fptosi(best, _INTS)
            picked = b.and_(whole, ir.Constant(_INTS, [choices - 1] * LANES))
            b.store(b.trunc(picked, _BYTES), lanes(chosen, target, _BYTES)).align = 1
            clean = b.sitofp(b.sub(whole, picked), _FLOATS)
            tag = b.and_(b.trunc(target, _INT), ir.Constant(_INT, choices - 1))
            tagged = b.fadd(b.fsub(clean, load(old, zero)), broadcast(b.sitofp(tag, _FLOAT)))
            b.store(tagged, lanes(out, target, _FLOATS)).align = 4
            return context.get_dummy_value()

        return signature, generate

    return step


def _smaller(b: Any, first: Any, second: Any) -> Any:
    return b.select(b.fcmp_ordered("<", first, second), first, second)


_step2, _step3, _step4 = _make_step(2), _make_step(3), _make_step(4)


@njit(nogil=True, cache=True)
def _forward(
    x: Array, values: Array, bits: int, cost: Array, other: Array, decisions: Array
) -> Array:
    """Runs all rows of `x` [rows, LANES] and returns the final costs, tags included."""
    overlaps = cost.shape[0]
    choices = 1 << bits
    runs = overlaps >> bits
    for row in range(x.shape[0]):
        here, chosen = x[row], decisions[row]
        for run in range(runs):
            low = run * choices
            for top in range(choices):
                target, state = top * runs + run, top * overlaps + low
                if bits == 2:
                    _step2(other, chosen, cost, values, here, target, low, state)
                elif bits == 3:
                    _step3(other, chosen, cost, values, here, target, low, state)
                else:
                    _step4(other, chosen, cost, values, here, target, low, state)
        cost, other = other, cost
    return cost


@njit(nogil=True, cache=True)
def encode_columns(
    targets: Array,
    values: Array,
    bits: int,
    side: int,
    step: int,
    codes: Array,
    first: int,
    last: int,
) -> None:
    """Writes the codes of columns first..last-1; `reference.trellis_encode` defines them.

    targets int16 [rows, columns]; values float32 [states] in cost units; side, step: rows at the
    seam and the rounding of the search; codes uint8 [bytes, columns], zeroed.
    """
    rows = targets.shape[0]
    overlaps = values.shape[0] >> bits
    mask, choice_mask = overlaps - 1, (1 << bits) - 1
    cost = np.empty((overlaps, LANES), np.float32)
    other = np.empty((overlaps, LANES), np.float32)
    decisions = np.empty((max(rows, 2 * side), overlaps, LANES), np.uint8)
    x = np.zeros((rows, LANES), np.float32)
    window = np.empty((2 * side, LANES), np.float32)
    seam = np.empty(LANES, np.int64)
    path = np.empty(LANES, np.int64)
    for start in range(first, last, LANES):
        width = min(LANES, last - start)
        for row in range(rows):
            for lane in range(width):
                value = min(max(np.int64(targets[row, start + lane]), -1200), 1200)
                x[row, lane] = np.float32((value + step // 2) // step * step)
        for row in range(2 * side):
            window[row] = x[(row - side) % rows]
        for overlap in range(overlaps):
            cost[overlap, :] = np.float32(overlap & choice_mask)
        ends = _forward(window, values, bits, cost, other, decisions)
        for lane in range(LANES):
            best = 0
            smallest = ends[0, lane]
            for overlap in range(1, overlaps):
                clean = ends[overlap, lane] - np.float32(overlap & choice_mask)
                if clean < smallest:
                    smallest, best = clean, overlap
            for row in range(2 * side - 1, side - 1, -1):
                best = ((best << bits) | decisions[row, best, lane]) & mask
            seam[lane] = best
        for overlap in range(overlaps):
            cost[overlap, :] = np.float32((1 << 23) + (overlap & choice_mask))
        for lane in range(LANES):
            cost[seam[lane], lane] = np.float32(seam[lane] & choice_mask)
        _forward(x, values, bits, cost, other, decisions)
        path[:] = seam
        for row in range(rows - 1, -1, -1):
            place = row * bits
            byte, shift = place >> 3, place & 7
            for lane in range(width):
                picked = np.int64(decisions[row, path[lane], lane])
                path[lane] = ((path[lane] << bits) | picked) & mask
                shifted = picked << shift
                codes[byte, start + lane] |= np.uint8(shifted & 255)
                if shifted > 255:
                    codes[byte + 1, start + lane] |= np.uint8(shifted >> 8)
