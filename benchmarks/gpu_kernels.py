"""Kernels on a card: are they right, and how fast?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vqdq import kernels, packing
from vqdq.codecs import tables
from vqdq.kernels import int8_reference, reference
from vqdq.kernels.int8 import Lines

if TYPE_CHECKING:
    from benchmarks.gpu_bench import Bench

LAYERS = 2.5e9  # weights of the SDXL-size denoiser that are compressed


def _codes(rows: int, columns: int, bits: int, device: Any) -> torch.Tensor:
    size = (packing.packed_bytes(rows, bits), columns)
    return torch.randint(0, 256, size, dtype=torch.uint8, device=device)


def _signs(columns: int, device: Any) -> torch.Tensor:
    return torch.randint(0, 2, (columns,), device=device) * 2.0 - 1


def check(
    bench: Bench, name: str, found: torch.Tensor, expected: torch.Tensor, off: float = 0.0
) -> None:
    found, expected = found.cpu(), expected.cpu()
    if off:
        error = (found.double() - expected.double()).abs().max()
        share = float(error / expected.double().abs().max())
        bench.add("checks", name, float(share <= off), "pass", note=f"off by {share:.1e}")
    else:
        bench.add("checks", name, float(torch.equal(found, expected)), "pass", note="every bit")


def checks(bench: Bench) -> None:
    """Compares every kernel with its reference on the processor, tails and odd sizes included."""
    device, tall = bench.device, 70 if bench.tiny else 773
    for bits, state_bits in ((2, 16), (3, 12), (4, 10), (6, 12))[bench.tiny * 3 :]:
        table, codes = tables.trellis(bits, state_bits), _codes(tall, 140, bits, "cpu")
        if bench.tiny:
            codes = codes[:, :20].contiguous()
        found = kernels.trellis_decode(codes.to(device), table.to(device), bits, tall)
        expected = reference.trellis_decode(codes, table, bits, tall)
        check(bench, f"trellis_decode k={bits} L={state_bits}", found, expected)
    for block in (1, 16, 64, 128, 256)[bench.tiny * 3 :]:
        columns, table = 256 if bench.tiny else 768, tables.trellis(3, 12)
        codes, scales = _codes(tall, columns, 3, "cpu"), torch.rand(tall)
        args = (codes, table, 3, scales, _signs(columns, "cpu"), block)
        there = (part.to(device) if isinstance(part, torch.Tensor) else part for part in args)
        found, expected = kernels.trellis_weight(*there), reference.trellis_weight(*args)  # pyright: ignore[reportArgumentType]
        check(bench, f"trellis_weight block {block}", found, expected)
        sums = torch.randint(0, 256, (9 * columns // 8, 3)).to(torch.uint8)
        books = (torch.randn(3, 256, 8) * 128).round() / 128
        rest = (torch.rand(9), columns // 8, max(block, 8), _signs(columns, "cpu"))
        given = [part.to(device) if isinstance(part, torch.Tensor) else part for part in rest]
        found = kernels.additive_decode_rotated(sums.to(device), books.to(device), *given)  # pyright: ignore[reportArgumentType]
        expected = reference.additive_decode_rotated(sums, books, *rest)
        check(bench, f"additive_decode_rotated block {max(block, 8)}", found, expected)
    x = torch.randn(33, 640) * 3
    check(bench, "hadamard", kernels.hadamard(x.to(device), 128), reference.hadamard(x, 128))
    lines = Lines(values=x[None], signs=_signs(640, "cpu"), block=128)
    found = kernels.own_codes(lines.on(torch.device(device)), 8)
    for name, part, whole in zip(
        ("codes", "scale", "zero"), found[:3], int8_reference.own_codes(lines, 8)[:3], strict=True
    ):
        check(bench, f"own_codes {name}", part, whole)
    _searches_check(bench)


def _searches_check(bench: Bench) -> None:
    device = bench.device
    forms = ((3, 8, 64, 1),) if bench.tiny else ((3, 12, 773, 9), (2, 14, 256, 3), (5, 12, 261, 5))
    for bits, state_bits, rows, columns in forms:
        table = tables.trellis(bits, state_bits)
        targets = (torch.randn(rows, columns) * 256).to(torch.int16)
        found = kernels.trellis_encode(targets.to(device), table.to(device), bits)
        expected = _processor("trellis_encode", targets, table, bits)
        check(bench, f"trellis_encode k={bits} L={state_bits}", found, expected)
    rows, columns = (40, 3) if bench.tiny else (300, 140)
    weight, table = torch.randn(rows, columns), tables.trellis(3, 8)
    unit, scales = torch.randn(columns, columns).triu(1) * 0.1, torch.full((rows,), 1 / 32)
    args = (weight, scales, unit, table, 3)
    found = kernels.trellis_feedback(*(part.to(device) for part in args[:4]), 3)
    check(bench, "trellis_feedback", found, _processor("trellis_feedback", *args))
    count, words, beam = (2, 16, 3) if bench.tiny else (500, 256, 8)
    vectors = (torch.randn(count, 8) * 128).round().to(torch.int16)
    books = (torch.randn(3, words, 8) * 80).round().to(torch.int16)
    found = kernels.additive_encode(vectors.to(device), books.to(device), beam)
    expected = reference.additive_encode(vectors, books, beam)
    check(bench, "additive_encode", found, expected)


def _processor(op: str, *args: Any) -> torch.Tensor:
    """Returns what the processor's own implementation finds: compiled where numba is."""
    from vqdq.kernels import backend

    return getattr(backend.chosen("vqdq.kernels.cpu", "vqdq.kernels.reference")[0], op)(*args)


def ceilings(bench: Bench) -> None:
    """Measures the card's copy bandwidth and what its libraries multiply."""
    size = 1 << (12 if bench.tiny else 31)
    source = torch.empty(size, dtype=torch.uint8, device=bench.device).random_()
    target = torch.empty_like(source)
    name = "copy, read and written"
    bench.timed("ceilings", name, lambda: target.copy_(source), per=2 * size / 1e9, unit="GB/s")
    side = 64 if bench.tiny else 8192
    a, b = (torch.randn(side, side, device=bench.device).bfloat16() for _ in range(2))
    work = 2 * side**3 / 1e12
    bench.timed("ceilings", f"bf16 product {side}", lambda: a @ b, per=work, unit="TFLOP/s")
    i, j = (torch.randint(-9, 9, (side, side), device=bench.device).to(torch.int8) for _ in "ab")

    def whole() -> object:
        return torch._int_mm(i, j.T)

    bench.timed("ceilings", f"int8 product {side} (library)", whole, per=work, unit="TOP/s")
    if not bench.tiny and hasattr(torch, "float8_e4m3fn"):
        x, y = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn)
        one = torch.ones((), device=bench.device)

        def fp8() -> object:
            return torch._scaled_mm(x, y.T, one, one, out_dtype=torch.bfloat16)

        bench.timed("ceilings", f"fp8 product {side} (library)", fp8, per=work, unit="TFLOP/s")


def decoding(bench: Bench) -> None:
    """Measures decoding: bytes read and written a second, of weights as wide as SDXL's."""
    device, (rows, columns) = bench.device, (64, 128) if bench.tiny else (10240, 10240)
    copy = next((r.value for r in bench.rows if r.name == "copy, read and written"), 0.0)
    forms = ((3, 12, 128),) if bench.tiny else (
        *((2, 12, 128), (3, 8, 128), (3, 10, 128), (3, 12, 0), (3, 12, 128), (3, 12, 256)),
        *((3, 16, 128), (4, 12, 128), (4, 16, 128)),
    )  # fmt: skip
    for bits, state_bits, block in forms:
        table = tables.trellis(bits, state_bits, torch.device(device))
        codes, scales = _codes(rows, columns, bits, device), torch.rand(rows, device=device)
        args = (codes, table, bits, scales, _signs(columns, device), max(block, 1), torch.bfloat16)
        moved = codes.numel() + 2 * rows * columns
        name = f"trellis k={bits} L={state_bits} block {block} to bf16"
        seconds = bench.timed(
            "decode", name, lambda args=args: kernels.trellis_weight(*args),
            per=moved / 1e9, unit="GB/s",
        )  # fmt: skip
        share = f"{moved / 1e9 / seconds / copy:.0%} of the copy, " if copy else ""
        bench.add(
            "decode", f"{name}, all of SDXL's size", LAYERS / (rows * columns) * seconds * 1e3,
            "ms", note=f"{share}estimated from one matrix",
        )  # fmt: skip
        if bench.is_late:
            return
    table, codes = tables.trellis(3, 12, torch.device(device)), _codes(rows, columns, 3, device)
    moved = (codes.numel() + rows * columns) / 1e9
    bench.timed(
        "decode", "trellis k=3 L=12 to int8",
        lambda: kernels.trellis_decode(codes, table, 3, rows), per=moved, unit="GB/s",
    )  # fmt: skip
    sums = torch.randint(0, 256, (rows * columns // 8, 3), device=device).to(torch.uint8)
    books, signs = torch.randn(3, 256, 8, device=device), _signs(columns, device)
    books, scales = (books * 128).round() / 128, torch.rand(rows, device=device)
    moved = (sums.numel() + 2 * rows * columns) / 1e9
    for block in (128, 256):
        bench.timed(
            "decode", f"additive 3 × 8, block {block} to bf16",
            lambda block=block: kernels.additive_decode_rotated(
                sums, books, scales, columns // 8, block, signs, torch.bfloat16
            ),
            per=moved, unit="GB/s",
        )  # fmt: skip


def encoding(bench: Bench) -> None:
    """Measures the encoders' searches, and what they make of a denoiser of SDXL's size."""
    device = bench.device
    forms = ((3, 8, 64, 1),) if bench.tiny else (
        *((3, 10, 1280, 1280), (3, 12, 1280, 1280), (2, 12, 1280, 640), (4, 12, 1280, 640)),
        (3, 16, 1280, 160),
    )  # fmt: skip
    for bits, state_bits, rows, columns in forms:
        table = tables.trellis(bits, state_bits, torch.device(device))
        targets = (torch.randn(rows, columns, device=device) * 256).to(torch.int16)
        name = f"trellis k={bits} L={state_bits}"
        seconds = bench.timed(
            "encode", name, lambda args=(targets, table, bits): kernels.trellis_encode(*args),
            per=rows * columns / 1e6, unit="M weights/s", repeats=3,
        )  # fmt: skip
        whole = LAYERS / (rows * columns) * seconds
        bench.add("encode", f"{name}, SDXL's size", whole, "s", note="estimated from one matrix")
        if bench.is_late:
            return
    rows, columns = (40, 3) if bench.tiny else (1280, 256)
    weight, scales = torch.randn(rows, columns, device=device), torch.ones(rows, device=device) / 32
    unit, table = torch.eye(columns, device=device), tables.trellis(3, 8 if bench.tiny else 12)
    bench.timed(
        "encode", "trellis k=3 L=12 with feedback, one layer",
        lambda: kernels.trellis_feedback(weight, scales, unit, table.to(device), 3),
        per=rows * columns / 1e6, unit="M weights/s", repeats=2,
    )  # fmt: skip
    count, words, beam = (2, 16, 3) if bench.tiny else (200_000, 256, 8)
    vectors = (torch.randn(count, 8, device=device) * 128).round().to(torch.int16)
    books = (torch.randn(3, words, 8, device=device) * 80).round().to(torch.int16)
    bench.timed(
        "encode", "additive 3 × 8, beam 8", lambda: kernels.additive_encode(vectors, books, beam),
        per=8 * count / 1e6, unit="M weights/s", repeats=3,
    )  # fmt: skip
