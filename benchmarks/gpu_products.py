"""Products on a card: of codes of 8 bits, integers and floats. Are they right, and how fast?"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from benchmarks.gpu_kernels import check
from vqdq import kernels, packing
from vqdq.codecs import tables
from vqdq.kernels import backend, few_rows, fp8, int8_parts, reference
from vqdq.kernels.int8 import Border, Lines
from vqdq.kernels.triton import support

if TYPE_CHECKING:
    from benchmarks.gpu_bench import Bench


def integers_check(bench: Bench) -> None:
    device, rows = bench.device, 40 if bench.tiny else 1500
    codes = torch.randint(0, 256, (2, rows, 200), dtype=torch.uint8)
    levels = torch.randint(-127, 128, (136, 200)).to(torch.int8)
    scale, zero = torch.rand(2, rows), torch.randint(0, 256, (2, rows)).float()
    columns, bias = torch.rand(136), torch.randn(136)
    given = (scale, zero, columns, bias)
    part = int8_parts.prepared(levels, 1)
    plain = int8_parts.reference_product(codes, part, *given, torch.float32, int8_parts.Reading())
    there = [each.to(device) for each in given]
    found = int8_parts.int8_product(
        codes.to(device), int8_parts.prepared(levels.to(device), 1), *there, torch.float32
    )
    check(bench, "int8_product rows", found, plain, 1e-6)
    index = torch.randint(0, 5, (200,))
    part = int8_parts.prepared(levels, 1, index)
    placed = codes.index_select(2, part.source.clamp_min(0))
    grid = (torch.rand(5), torch.tensor([-70.0, 0, 12, 255, 300]))
    plain = int8_parts.reference_product(
        placed, part, *grid, columns, None, torch.float32, int8_parts.Reading(), by_group=True
    )
    found = int8_parts.int8_product(
        placed.to(device), int8_parts.prepared(levels.to(device), 1, index.to(device)),
        *(each.to(device) for each in grid), columns.to(device), None, torch.float32,
        by_group=True,
    )  # fmt: skip
    check(bench, "int8_product groups", found, plain, 1e-6)
    maps = torch.randint(0, 256, (2, 7, 9, 40), dtype=torch.uint8)
    levels = torch.randint(-127, 128, (136, 360)).to(torch.int8)
    reading = int8_parts.Reading(kernel=(3, 3), stride=(2, 1), border=Border(1, 1, 1, 1))
    given = (torch.rand(2, 63), torch.randint(0, 256, (2, 63)).float(), columns, bias)
    plain = int8_parts.reference_product(
        maps, int8_parts.prepared(levels, 9), *given, torch.float32, reading
    )
    found = int8_parts.int8_product(
        maps.to(device), int8_parts.prepared(levels.to(device), 9),
        *(each.to(device) for each in given), torch.float32, reading,
    )  # fmt: skip
    check(bench, "int8_product convolution", found, plain, 1e-6)


def floats_check(bench: Bench) -> None:
    """Hopper's units keep about 14 bits of a sum."""
    device, rows = bench.device, 40 if bench.tiny else 1500
    off = 1e-6 if bench.tiny else 1e-3
    x = torch.randn(2, rows, 192)
    x[..., ::3] *= 1e-3
    lines = Lines(values=x)
    codes, scale = fp8.fp8_rows(lines.on(torch.device(device)))
    plain, wanted = fp8.reference_rows(lines)
    check(bench, "fp8_rows codes", codes.view(torch.uint8), plain.view(torch.uint8))
    check(bench, "fp8_rows scale", scale, wanted)
    weight, bias = torch.randn(144, 192), torch.randn(144)
    levels, columns = fp8.rounded_weight(weight)
    there, _ = fp8.rounded_weight(weight.to(device))
    given, moved = (columns, bias), (columns.to(device), bias.to(device))
    reading = int8_parts.Reading()
    sums = int8_parts.reference_product(plain, levels, wanted, None, *given, torch.float32, reading)
    found = fp8.fp8_product(codes, there, scale, *moved, torch.float32)
    check(bench, "fp8_product rows", found, sums, off)
    if bench.tiny or not support.library_fault(codes.device):
        short = (moved[0], moved[1].bfloat16())
        found = fp8.library_product(codes, there, scale, *short)
        check(bench, "fp8_product by the library", found, sums, 2**-7)
    maps, weight = (torch.randn(2, 7, 9, 40) * 50).to(fp8.FORMAT), torch.randn(136, 360)
    levels, columns = fp8.rounded_weight(weight, 9)
    reading = int8_parts.Reading(kernel=(3, 3), stride=(2, 1), border=Border(1, 1, 1, 1))
    scale = torch.rand(2, 63)
    sums = int8_parts.reference_product(
        maps, levels, scale, None, columns, None, torch.float32, reading
    )
    there, _ = fp8.rounded_weight(weight.to(device), 9)
    found = fp8.fp8_product(
        maps.to(device), there, scale.to(device), columns.to(device), None, torch.float32, reading
    )
    check(bench, "fp8_product convolution", found, sums, off)


def few_check(bench: Bench) -> None:
    """Compares few rows times a weight that is decoded on the way with decoding first."""
    device, (rows, columns) = bench.device, (70, 128) if bench.tiny else (773, 768)
    for count, block in ((5, 64), (32, 128)):
        given = packed_weight(rows, columns, 3, 12, block, torch.device("cpu"))
        x, bias = torch.randn(count, columns), torch.randn(rows)
        weight = reference.trellis_weight(*given)
        there = (part.to(device) if isinstance(part, torch.Tensor) else part for part in given)
        found = few_rows.trellis_product(x.to(device), *there, bias.to(device))  # pyright: ignore[reportArgumentType]
        plain = functional.linear(x.double(), weight.double(), bias.double())
        check(bench, f"trellis_product of {count} rows, block {block}", found, plain, 1e-5)


def packed_weight(
    rows: int, columns: int, bits: int, state_bits: int, block: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, int, torch.Tensor, torch.Tensor, int]:
    """Returns random codes, a table, bits, scales, signs and the block of a trellis weight."""
    size = (packing.packed_bytes(rows, bits), columns)
    codes = torch.randint(0, 256, size, dtype=torch.uint8, device=device)
    table, scales = tables.trellis(bits, state_bits, device), torch.rand(rows, device=device)
    signs = torch.randint(0, 2, (columns,), device=device) * 2.0 - 1
    return codes, table, bits, scales, signs, block


def few(bench: Bench) -> None:
    """Measures few rows times a 3-bit weight, decoded as it is multiplied and decoded first, beside
    bf16: what the time embedding and the modulations of a transformer ask for.
    """
    device = torch.device(bench.device)
    for outputs, columns in ((64, 128),) if bench.tiny else ((1280, 1280), (18432, 3072)):
        given = packed_weight(outputs, columns, 3, 8 if bench.tiny else 12, 128, device)
        dense = torch.randn(outputs, columns, device=device).bfloat16()
        for rows in (2,) if bench.tiny else (1, 2, 8, 32):
            x = torch.randn(rows, columns, device=device).bfloat16()
            name = f"{rows} × {columns} × {outputs}"
            plain = bench.timed("few rows", f"bf16 {name}", partial(functional.linear, x, dense))
            work = partial(few_rows.trellis_product, x, *given)
            fused = bench.timed("few rows", f"3 bits, fused {name}", work)
            bench.add("few rows", f"fused over bf16 {name}", fused / plain, "×", note="same run")
            first = partial(_decoded_first, x, given)
            bench.timed("few rows", f"3 bits, decoded first {name}", first)
            if bench.is_late:
                return


def _decoded_first(x: torch.Tensor, given: tuple[Any, ...]) -> torch.Tensor:
    return functional.linear(x, kernels.trellis_weight(*given, x.dtype))


def products(bench: Bench) -> None:
    """Measures codes and products beside bf16, at the sizes of SDXL's layers with guidance."""
    shapes = ((20, 64, 64),) if bench.tiny else (
        *((8192, 640, 640), (2048, 1280, 1280), (2048, 1280, 10240), (2048, 5120, 1280)),
        (154, 2048, 1280),
    )  # fmt: skip
    for shape in shapes:
        pair = _layer(bench, *shape)
        name = " × ".join(map(str, shape))
        work = partial(functional.linear, *pair)
        plain = bench.timed("products", f"bf16 {name}", work)
        integers(bench, name, *pair, plain)
        floats(bench, name, *pair, plain)
        if bench.is_late:
            return
    for side, *widths in ((4, 32, 32),) if bench.tiny else ((128, 320, 320), (32, 1280, 1280)):
        pair = _convolution(bench, side, *widths)
        name = f"3×3 {side}² × {widths[0]} × {widths[1]}"
        work = partial(functional.conv2d, *pair, padding=1)
        bench.timed("products", f"bf16 {name}", work)
        integers(bench, name, *pair)
        floats(bench, name, *pair)


def compiled_integers(bench: Bench) -> None:
    """Calls what `products` calls in integers: for compilers."""
    integers(bench, "rows", *_layer(bench, 20, 64, 64))
    integers(bench, "maps", *_convolution(bench, 4, 32, 32))


def compiled_floats(bench: Bench) -> None:
    """Calls what `products` calls in 8-bit floats: for compilers."""
    floats(bench, "rows", *_layer(bench, 20, 64, 64))
    floats(bench, "maps", *_convolution(bench, 4, 32, 32))


def _layer(bench: Bench, rows: int, given: int, outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(1, rows, given, device=bench.device).bfloat16()
    return x, torch.randn(outputs, given, device=bench.device).bfloat16()


def _convolution(
    bench: Bench, side: int, given: int, outputs: int
) -> tuple[torch.Tensor, torch.Tensor]:
    maps = torch.randn(2, given, side, side, device=bench.device).bfloat16()
    weight = torch.randn(outputs, given, 3, 3, device=bench.device).bfloat16()
    return tuple(part.to(memory_format=torch.channels_last) for part in (maps, weight))  # pyright: ignore[reportReturnType]


def _reading(weight: torch.Tensor) -> tuple[torch.Tensor, int, int8_parts.Reading]:
    """Returns a weight as a matrix, its taps, and how its input is read."""
    if weight.ndim == 2:
        return weight, 1, int8_parts.Reading()
    reading = int8_parts.Reading(kernel=(3, 3), border=Border(1, 1, 1, 1))
    return weight.permute(0, 2, 3, 1).flatten(1), 9, reading


def integers(
    bench: Bench, name: str, x: torch.Tensor, weight: torch.Tensor, plain: float = 0.0
) -> None:
    """Measures codes and the product in int8; `plain`: seconds in bf16."""
    matrix, taps, reading = _reading(weight)
    levels = torch.randint(-127, 128, matrix.shape, device=bench.device).to(torch.int8)
    part, columns = int8_parts.prepared(levels, taps), torch.rand(len(matrix), device=bench.device)
    lines = Lines(values=x)
    if taps == 1:
        signs = torch.randint(0, 2, (x.shape[2],), device=bench.device) * 2.0 - 1
        lines = Lines(values=x, signs=signs, block=64)
    codes, scale, zero, _ = kernels.own_codes(lines, 8)
    rest = (codes, part, scale, zero, columns, None, torch.bfloat16)
    bench.timed("products", f"codes {name}", lambda: kernels.own_codes(lines, 8))
    ours = bench.timed("products", f"int8 {name}", lambda: int8_parts.int8_product(*rest, reading))
    if plain:
        bench.add("products", f"int8 over bf16 {name}", ours / plain, "×", note="without codes")
    if taps == 1 and x.shape[1] > 16:
        whole = f"int8 by the library {name}"
        bench.timed("products", whole, lambda: int8_parts.library_product(*rest))


def floats(
    bench: Bench, name: str, x: torch.Tensor, weight: torch.Tensor, plain: float = 0.0
) -> None:
    """Measures codes and the product in e4m3 as it is chosen, and by Triton where torch's own is
    chosen.
    """
    matrix, taps, reading = _reading(weight)
    lines, (levels, columns) = Lines(values=x), fp8.rounded_weight(matrix, taps)
    codes, scale = fp8.fp8_rows(lines)
    rest = (codes, levels, scale, columns, None, torch.bfloat16, reading)
    bench.timed("products", f"fp8 codes {name}", lambda: fp8.fp8_rows(lines))
    missing = backend.refusal(fp8.OPERATION, codes)
    whole = not missing and fp8.prefers_library(codes, levels, None, torch.bfloat16)
    whole = whole and not support.library_fault(codes.device)
    note = missing or ("torch's scaled_mm" if whole else "Triton")
    work = bench.timed("products", f"fp8 {name}", lambda: fp8.fp8_product(*rest), note=note)
    if plain:
        bench.add("products", f"fp8 over bf16 {name}", work / plain, "×", note="without codes")
    if whole:
        from vqdq.kernels.triton import products

        given = (codes, levels, scale, None, columns, None, torch.bfloat16, reading)
        bench.timed("products", f"fp8 by Triton {name}", lambda: products.product(*given))
