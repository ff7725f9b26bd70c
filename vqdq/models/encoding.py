"""One layer through its codec: the same matrix, seed and settings give the same bytes, anywhere."""

from __future__ import annotations

import hashlib
import math
import time

import torch

from vqdq import codecs
from vqdq.codecs.base import Packed
from vqdq.errors import UserError
from vqdq.progress import Event, Report
from vqdq.recipe import PlannedLayer


def layer_seed(seed: int, name: str) -> int:
    """Returns the seed of one layer: the same whatever was encoded before it, and where."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def encode_layer(
    matrix: torch.Tensor, planned: PlannedLayer, seed: int, report: Report
) -> tuple[Packed, float | None, float]:
    """Returns a layer's packed weight, its error in dB (None: exact) and the seconds it took."""
    name = planned.layer.name
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(layer_seed(seed, name))
    assert planned.method is not None
    codec = codecs.create(planned.method, planned.params)
    try:
        packed = codec.encode(
            matrix, taps=planned.layer.shape.taps, generator=generator, report=report
        )
    except UserError as error:
        raise UserError(error.what, where=name, remedy=error.remedy) from error
    seconds = time.perf_counter() - started
    return packed, error_db(matrix, packed.decode()), seconds


def error_db(weight: torch.Tensor, decoded: torch.Tensor) -> float | None:
    """Returns 10 log10(‖W-Ŵ‖² / ‖W‖²) to a thousandth, or None when nothing was lost.

    Rounded, because the last digits of a sum depend on the number of threads, and the value goes
    into a file that must be the same wherever it is made.
    """
    exact = weight.double()
    lost = float((exact - decoded.double()).square().sum())
    energy = float(exact.square().sum())
    return None if lost == 0 or energy == 0 else round(10 * math.log10(lost / energy), 3)


def within(report: Report, done: int, total: int, name: str) -> Report:
    """Returns the report of a codec: it may cancel, but the stage stays "layer k of n"."""

    def inner(event: Event, /) -> None:
        text = f"{name}: {event.message}" if event.message else name
        report(Event(stage="encode", done=done, total=total, message=text))

    return inner
