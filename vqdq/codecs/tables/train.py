"""Rebuilds the shipped tables from nothing but a seed: `python -m vqdq.codecs.tables.train [FOLDER]`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from vqdq import kernels
from vqdq.codecs import codebooks
from vqdq.codecs.tables import TRELLIS_STEP

ROWS, COLUMNS, ROUNDS = 512, 2048, 16
VECTORS, ADDITIVE_ROUNDS = 65536, 24


def gaussian_quantiles(count: int) -> torch.Tensor:
    """Returns the midpoints of `count` equally likely parts of N(0, 1), float64 [count], ascending."""
    levels = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.special.ndtri(levels)


def trellis_table(bits: int, state_bits: int, *, columns: int, rounds: int) -> torch.Tensor:
    """Returns a trellis table trained on Gaussian data, int8 [2**state_bits].

    Starts from a random permutation of the Gaussian quantiles, then alternates the Viterbi search
    with the mean of what each state was used for (Lloyd's algorithm with a trellis in place of the
    nearest-neighbour rule).
    """
    states = 1 << state_bits
    generator = torch.Generator().manual_seed(1000 * bits + state_bits)
    values = gaussian_quantiles(states)[torch.randperm(states, generator=generator)]
    values = values * (1 - 4.0**-bits) ** 0.5  # a code at distortion D has the power 1 - D
    for _ in range(rounds):
        data = torch.randn(ROWS, columns, generator=generator, dtype=torch.float64)
        table = _rounded(values)
        targets = (data * (kernels.COST_UNITS / TRELLIS_STEP)).round().to(torch.int16)
        codes = kernels.trellis_encode(targets, table, bits)
        names = state_names(codes, bits, state_bits)
        count = torch.bincount(names, minlength=states).double()
        total = torch.bincount(names, weights=data.reshape(-1), minlength=states)
        # An unused state keeps its value; a rarely used one moves part of the way.
        values = (total + 4 * values) / (count + 4)
        error = data - kernels.trellis_decode(codes, table, bits, ROWS).double() * TRELLIS_STEP
        print(
            f"trellis k={bits} L={state_bits}: error {float(error.square().mean()):.5f}", flush=True
        )
    return _rounded(values)


def state_names(codes: torch.Tensor, bits: int, state_bits: int) -> torch.Tensor:
    """Returns the state of every weight, int64 [rows*columns]: the decoder with the state as its own value."""
    low = (torch.arange(1 << state_bits) & 127).to(torch.int8)
    high = (torch.arange(1 << state_bits) >> 7).to(torch.int8)
    rows = codes.shape[0] * 8 // bits
    first = kernels.trellis_decode(codes, low, bits, rows).long()
    second = kernels.trellis_decode(codes, high, bits, rows).long()
    return (first | second << 7).reshape(-1)


def _rounded(values: torch.Tensor) -> torch.Tensor:
    return (values / TRELLIS_STEP).round().clamp(-127, 127).to(torch.int8)


def additive_table(num_codebooks: int, group_size: int, *, count: int, rounds: int) -> torch.Tensor:
    """Returns codebooks trained on Gaussian vectors, float16 [num_codebooks, 256, group_size].

    Residual k-means, then rounds of beam search and refitting, on fresh vectors each time.
    """
    generator = torch.Generator().manual_seed(100 * group_size + num_codebooks)

    def sample() -> torch.Tensor:
        return codebooks.to_grid(torch.randn(count, group_size, generator=generator))

    books = codebooks.residual_kmeans(sample(), num_codebooks, rounds=8, generator=generator)
    for index in range(rounds):
        books = codebooks.refine(sample(), books, beam=8, rounds=1)
        if index % 4 == 3:
            fresh = sample()
            codes = kernels.additive_encode(fresh, books, 8)
            values = books.float() / codebooks.GRID
            decoded = kernels.additive_decode(codes, values, torch.ones(count), 1)
            error = float((fresh / codebooks.GRID - decoded).square().mean())
            print(f"additive {num_codebooks}x8 g={group_size}: error {error:.5f}", flush=True)
    return (books.float() / codebooks.GRID).half()


def main() -> None:
    """Trains every table and writes trellis.npz and additive.npz."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(__file__).parent)
    parser.add_argument("--only", choices=("trellis", "additive"))
    arguments = parser.parse_args()
    if arguments.only != "additive":
        trained = {
            f"k{bits}_l{state_bits}": trellis_table(
                bits, state_bits, columns=COLUMNS, rounds=ROUNDS
            ).numpy()
            for state_bits in (8, 10, 12)
            for bits in (2, 3, 4)
        }
        np.savez_compressed(arguments.folder / "trellis.npz", **trained)
    if arguments.only != "trellis":
        trained = {
            f"m{number}_g{size}": additive_table(
                number, size, count=VECTORS, rounds=ADDITIVE_ROUNDS
            ).numpy()
            for size in (4, 8, 16)
            for number in (1, 2, 3, 4)
        }
        np.savez_compressed(arguments.folder / "additive.npz", **trained)


if __name__ == "__main__":
    main()
