"""Compiles Triton kernels for cards that are not here: calls go as far as machine code, no further.

    with compiling((75, 80, 90, 100)) as compiled:
        decoding.trellis_decode(codes, table, 3, 64)  # processor tensors; what it returns is empty
    for kernel in compiled: print(kernel.name, kernel.capability, kernel.fault)

Everything is as at a launch (types, alignment, arguments that equal 1), so what fails to compile on
a card fails here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """What became of one kernel for one card.

    Attributes:
        capability: 90 for sm_90; fault: the error, "" when it compiled.
        shared_bytes: shared memory of a block; warps: of a block; seconds: to compile.
        instructions: lines of machine code, 0 where it cannot be disassembled.
    """

    name: str
    capability: int
    fault: str
    shared_bytes: int = 0
    warps: int = 0
    seconds: float = 0.0


class _Absent:
    """Stands for the driver of cards that are not here.

    A device is numbered by its capability: Triton keeps the compiler of a number for good.
    """

    current = 0

    def get_current_device(self) -> int:
        return self.current

    def get_current_stream(self, device: int) -> int:
        del device
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.current, 32)


@contextmanager
def compiling(capabilities: Sequence[int]) -> Iterator[list[Compiled]]:
    """Compiles every kernel called inside for each capability; yields the list that it fills."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    absent, found = _Absent(), list[Compiled]()
    launch: Any = JITFunction.run
    before = driver._active if hasattr(driver, "_active") else None

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        del warmup
        for capability in capabilities:
            absent.current = capability
            start, name = time.perf_counter(), self.fn.__name__
            try:
                made = launch(self, *args, grid=grid, warmup=True, **options)
                if hasattr(made, "result"):
                    made = made.result()
            except Exception as error:  # whatever a compiler raises is what is asked for
                deepest: BaseException = error
                while deepest.__cause__ is not None:
                    deepest = deepest.__cause__
                text = f"{type(deepest).__name__}: {' '.join(str(deepest).split())}"
                found.append(Compiled(name=name, capability=capability, fault=text[-400:]))
                continue
            found.append(
                Compiled(
                    name=name,
                    capability=capability,
                    fault="",
                    shared_bytes=int(made.metadata.shared),
                    warps=int(made.metadata.num_warps),
                    seconds=time.perf_counter() - start,
                )
            )

    JITFunction.run = compile_only
    driver.set_active(absent)
    try:
        yield found
    finally:
        JITFunction.run = launch
        if before is not None:
            driver.set_active(before)
