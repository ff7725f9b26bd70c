"""Every kernel compiled for cards that are not here."""

from __future__ import annotations

import torch

from benchmarks import gpu_kernels, gpu_products
from benchmarks.compiling import Compiled, compiling
from benchmarks.gpu_bench import Bench
from vqdq import kernels
from vqdq.codecs import tables
from vqdq.kernels import few_rows, int8_parts
from vqdq.kernels.backend import interpreted
from vqdq.kernels.int8 import Border, Lines
from vqdq.kernels.triton import support


def compile_all(capabilities: tuple[int, ...]) -> int:
    """Compiles what the sections call for cards that are not here, and prints what fails.

    8-bit floats are compiled for the cards that have units for them.
    """
    bench = Bench(device=torch.device("cpu"), tiny=True, ends=float("inf"))
    modern = tuple(each for each in capabilities if divmod(each, 10) >= support.FLOATS)
    with interpreted():
        with compiling(capabilities) as found:
            _everything(bench)
        with compiling(modern) as floats:
            gpu_products.compiled_floats(bench)
    every: list[Compiled] = [*found, *floats]
    for kernel in every:
        state = kernel.fault or f"{kernel.shared_bytes} bytes shared, {kernel.seconds:.1f} s"
        print(f"{kernel.name:18} sm_{kernel.capability:<4} {state}")
    wrong = [each for each in every if each.fault and each.capability >= 80]
    print(f"{len(every) - len([e for e in every if e.fault])} of {len(every)} compiled")
    return 1 if wrong else 0


def _everything(bench: Bench) -> None:
    for run in (gpu_kernels.decoding, gpu_products.compiled_integers, gpu_kernels.encoding):
        run(bench)
    for rows in (3, 32):
        given = gpu_products.packed_weight(300, 512, 3, 12, 128, torch.device("cpu"))
        few_rows.trellis_product(torch.zeros(rows, 512).bfloat16(), *given)
    table, codes = tables.trellis(3, 16), torch.zeros(113, 512, dtype=torch.uint8)
    for block in (1, 256):
        given = (codes, table, 3, torch.ones(300), torch.ones(512), block, torch.float16)
        kernels.trellis_weight(*given)
    kernels.unpack_bits(torch.zeros(300, dtype=torch.uint8), 3, 700)
    kernels.hadamard(torch.zeros(33, 256), 128)
    kernels.feed_forward(torch.zeros(8, 70), torch.zeros(9, 70), torch.zeros(9, 8))
    kernels.line_extremes(Lines(values=torch.zeros(2, 33, 70)))
    maps = Lines(values=torch.zeros(1, 32, 6, 5).half(), divisor=torch.ones(32))
    kernels.row_codes(maps, torch.ones(()), torch.ones(()), 8, Border(1, 1, 1, 1))
    int8_parts.channel_codes(maps, torch.ones(32), torch.ones(32), 8)
