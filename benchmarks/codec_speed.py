"""How fast codecs encode and decode, and what decoding adds to a matrix product."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.codecs import SIZE, absent, gaussian, settings
from benchmarks.timing import Seconds, interleaved, table
from vqdq.codecs.trellis import TrellisCodec
from vqdq.kernels.threads import one_thread

TOKENS = 1024


def run(size: int = SIZE, repeats: int = 5) -> str:
    """Returns the table as Markdown."""
    weight = gaussian(size)
    count = weight.numel()
    chosen = {(item.method, item.text): item for item in settings()}
    codecs = {key: item.codec() for key, item in chosen.items()}
    packed = {key: codec.encode(weight) for key, codec in codecs.items()}  # compiles what must be
    work = {
        key: partial(codec.encode, weight) for key, codec in codecs.items() if not chosen[key].slow
    }
    encoding = interleaved(work, repeats=3, warm=False)
    for key, codec in codecs.items():
        if chosen[key].slow:
            encoding |= interleaved({key: partial(codec.encode, weight)}, repeats=1, warm=False)
    inputs = torch.randn(TOKENS, size, generator=torch.Generator().manual_seed(2))
    product = ("product", "")
    pieces: dict[tuple[str, str], Callable[[], object]] = {product: lambda: inputs @ weight.T}
    for key, stored in packed.items():
        pieces[*key[:1], f"{key[1]} float"] = partial(codecs[key].decode, stored)
        codec = codecs[key]
        if isinstance(codec, TrellisCodec):
            pieces[*key[:1], f"{key[1]} int8"] = partial(codec.levels, stored)
    with torch.no_grad(), one_thread():
        decoding = interleaved(pieces, repeats=repeats)
    rows: list[list[str]] = []
    for key in chosen:
        method, text = key
        whole, narrow = decoding[method, f"{text} float"], decoding.get((method, f"{text} int8"))
        share = whole.median / (whole.median + decoding[product].median)
        rows.append(
            [
                *key,
                _rate(count, encoding[key], 1e6),
                _rate(count, whole, 1e9),
                "–" if narrow is None else _rate(count, narrow, 1e9),
                f"{100 * share:.1f} %",
            ]
        )
    head = ["method", "settings", "encode, M weights/s", "decode to float, G weights/s"]
    head += ["decode to int8, G weights/s", "share of decode + product"]
    flops = 2 * TOKENS * count / decoding[product].median / 1e9
    note = (
        f"The product: {TOKENS} tokens by {size} × {size} in fp32 on one core, "
        f"{1e3 * decoding[product].median:.1f} ms ({1e3 * decoding[product].low:.1f}–"
        f"{1e3 * decoding[product].high:.1f}), {flops:.0f} Gflop/s."
    )
    return "\n\n".join(part for part in (table(head, rows), note, absent()) if part)


def _rate(count: int, seconds: Seconds, unit: float) -> str:
    middle, low, high = (
        f"{count / time / unit:.3g}" for time in (seconds.median, seconds.high, seconds.low)
    )
    return middle if low == high else f"{middle} ({low}–{high})"
