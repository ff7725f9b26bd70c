"""Rebuilds the shipped tables from seeds: `python -m vqdq.codecs.tables.train [FOLDER]`."""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vqdq import kernels
from vqdq.codecs import codebooks
from vqdq.codecs.tables import TRELLIS_STEP

ROWS, COLUMNS, ROUNDS = 512, 1024, 14
VECTORS, ADDITIVE_ROUNDS = 65536, 24


def gaussian_quantiles(count: int) -> torch.Tensor:
    """Returns the medians of `count` equally likely parts of N(0, 1), float64, ascending."""
    levels = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.special.ndtri(levels)


def first_values(bits: int, state_bits: int, generator: torch.Generator) -> torch.Tensor:
    """Returns Gaussian quantiles dealt to the states so that every branch covers the distribution.

    The quantiles are cut into 2**bits strata. The 2**bits states that follow one overlap get one
    value of each stratum, at the same place in each (a shifted scalar quantizer, as the cosets of
    Ungerboeck's codes), and so do the 2**bits states that lead into one overlap: the strata of the
    states that share their middle bits form a random Latin square. Against a random permutation
    this lowers the trained error by 3, 5 and 9 % at 2, 3 and 4 bits (L = 12), 5 to 15 % at L = 8.
    """
    choices, overlaps = 1 << bits, 1 << (state_bits - bits)
    strata = gaussian_quantiles(1 << state_bits).reshape(choices, overlaps)
    cosets = strata[:, torch.randperm(overlaps, generator=generator)]  # [stratum, overlap]
    squares: list[torch.Tensor] = []
    for _ in range(
        overlaps // choices
    ):  # state = top bits * overlaps + middle * choices + low bits
        rows, columns, names = (torch.randperm(choices, generator=generator) for _ in range(3))
        squares.append(names[(rows[:, None] + columns[None, :]) % choices])
    return cosets.gather(0, torch.cat(squares, dim=1)).reshape(-1)


def trellis_table(bits: int, state_bits: int, *, columns: int, rounds: int) -> torch.Tensor:
    """Returns a trellis table trained on Gaussian data, int8 [2**state_bits].

    Alternates the Viterbi search with the mean of what each state was used for: Lloyd's algorithm
    with a trellis in place of the nearest-neighbour rule.
    """
    states = 1 << state_bits
    generator = torch.Generator().manual_seed(1000 * bits + state_bits)
    values = first_values(bits, state_bits, generator)
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
        mean = float(error.square().mean())
        print(f"trellis k={bits} L={state_bits}: error {mean:.5f}", flush=True)
    return _rounded(values)


def state_names(codes: torch.Tensor, bits: int, state_bits: int) -> torch.Tensor:
    """Returns the state of every weight, int64 [rows*columns], from two tables that name it."""
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


def _save(path: Path, trained: dict[str, npt.NDArray[Any]]) -> None:
    """Writes one .npy a table into a zip whose bytes depend on the tables alone."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, table in trained.items():
            data = io.BytesIO()
            np.save(data, table, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), data.getvalue(), zipfile.ZIP_DEFLATED)


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
        _save(arguments.folder / "trellis.npz", trained)
    if arguments.only != "trellis":
        trained = {
            f"m{number}_g{size}": additive_table(
                number, size, count=VECTORS, rounds=ADDITIVE_ROUNDS
            ).numpy()
            for size in (4, 8, 16)
            for number in (1, 2, 3, 4)
        }
        _save(arguments.folder / "additive.npz", trained)


if __name__ == "__main__":
    main()
