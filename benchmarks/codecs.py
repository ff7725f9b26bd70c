"""Rate, distortion and speed of every codec on weights whose answer is known."""

from __future__ import annotations

import math
import time

import torch

from benchmarks.timing import interleaved, table
from vqdq import codecs

SIZE = 1280
SETTINGS: tuple[tuple[str, dict[str, object]], ...] = (
    *(("uniform", {"bits": bits, "clip": "absmax"}) for bits in (2, 3, 4)),
    *(("uniform", {"bits": bits, "clip": "mse"}) for bits in (2, 3, 4)),
    *(("additive", {"num_codebooks": bits}) for bits in (2, 3, 4)),
    *(("trellis", {"bits": bits, "state_bits": 10}) for bits in (2, 3, 4)),
    *(("trellis", {"bits": bits}) for bits in (2, 3, 4)),
)


def gaussian() -> torch.Tensor:
    """Returns independent N(0, 1) weights."""
    return torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def heavy() -> torch.Tensor:
    """Returns Student-t weights of 5 degrees of freedom with log-normal row scales."""
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(SIZE, SIZE, generator=generator)
    chi = torch.randn(5, SIZE, SIZE, generator=generator).square().sum(0)
    rows = torch.exp(0.5 * torch.randn(SIZE, 1, generator=generator))
    return normal / (chi / 5).sqrt() * rows


def run() -> str:
    """Returns the table as Markdown."""
    sources = {"N(0,1)": gaussian(), "heavy": heavy()}
    rows: list[list[str]] = []
    for method, values in SETTINGS:
        codec = codecs.create(method, **values)
        cells = [method, ", ".join(f"{key}={value}" for key, value in values.items())]
        encode_seconds = decode_seconds = math.inf
        errors: list[str] = []
        bits = 0.0
        for weight in sources.values():
            start = time.perf_counter()
            packed = codec.encode(weight)
            encode_seconds = min(encode_seconds, time.perf_counter() - start)
            times = interleaved({"decode": packed.decode}, repeats=5)
            decode_seconds = min(decode_seconds, times["decode"].median)
            error = ((packed.decode() - weight).square().sum() / weight.square().sum()).item()
            bits = packed.storage.bits_per_weight
            gap = 10 * math.log10(error / 2 ** (-2 * bits))
            errors.append(f"{error:.4f} ({gap:.2f})")
        count = SIZE * SIZE
        rows.append(
            [
                *cells,
                f"{bits:.3f}",
                *errors,
                f"{count / encode_seconds / 1e6:.2f}",
                f"{count / decode_seconds / 1e9:.2f}",
            ]
        )
        print(rows[-1], flush=True)
    head = ["method", "settings", "bits/weight"]
    head += [f"{name}: error (gap, dB)" for name in sources]
    return table([*head, "encode, M weights/s", "decode, G weights/s"], rows)
