"""One layer through its codec: the same matrix, seed and settings give the same bytes, anywhere."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vqdq import codecs
from vqdq.codecs.base import Codec, InputStats, Packed
from vqdq.errors import UserError
from vqdq.layers.inputs import fold_smoothing
from vqdq.progress import Event, Report
from vqdq.recipe import PlannedLayer

_ROWS = 256  # of which float64 copies exist at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedLayer:
    """A layer as it is stored, and what it lost.

    Attributes:
        packed: the weight.
        bias: the corrected bias in float16, or None when the layer keeps its own.
        error_db: 10 log10(‖W-Ŵ‖² / ‖W‖²); None when nothing was lost.
        output_error_db: the same for the outputs on the calibration inputs, E‖(W-Ŵ)x‖² / E‖Wx‖²,
            after the bias took up the mean; None without calibration.
        seconds: wall time.
    """

    packed: Packed
    bias: torch.Tensor | None
    error_db: float | None
    output_error_db: float | None
    seconds: float


def layer_seed(seed: int, name: str) -> int:
    """Returns the seed of one layer: the same whatever was encoded before it, and where."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def encode_layer(
    matrix: torch.Tensor,
    planned: PlannedLayer,
    seed: int,
    report: Report,
    *,
    stats: InputStats | None = None,
    bias: torch.Tensor | None = None,
    smoothing: torch.Tensor | None = None,
) -> EncodedLayer:
    """Returns the encoded layer.

    Args:
        stats: moments of its inputs; None, or a codec that does not use them: the weight alone.
        bias: given when it may take up the change of the mean output, b + (W − Ŵ) E[x] (arXiv
            1906.04721, section 4.2). The rounding then answers for the covariance only.
        smoothing: what each channel of the input is divided by before it is quantized, [channels]:
            W diag(s) is encoded, for inputs with the moments D⁻¹ H D⁻¹ and D⁻¹ μ (arXiv 2211.10438,
            section 4). Errors are said of W all the same.
    """
    job = LayerJob(planned=planned, matrix=matrix, stats=stats, bias=bias, smoothing=smoothing)
    return encode_layers([job], seed, report)[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerJob:
    """A layer that is to be encoded; see `encode_layer`."""

    planned: PlannedLayer
    matrix: torch.Tensor
    stats: InputStats | None = None
    bias: torch.Tensor | None = None
    smoothing: torch.Tensor | None = None


def encode_layers(jobs: Sequence[LayerJob], seed: int, report: Report) -> list[EncodedLayer]:
    """Returns layers of one shape, method and settings, each as `encode_layer` gives it.

    Their search runs together where that pays (`Codec.batched_search`). The seconds are shared.
    """
    started = time.perf_counter()
    first = jobs[0].planned
    assert first.method is not None
    codec = codecs.create(first.method, first.params)
    begun = [_Begun.of(job, codec) for job in jobs]
    names = [job.planned.layer.name for job in jobs]
    generators = [torch.Generator().manual_seed(layer_seed(seed, name)) for name in names]
    taps = first.layer.shape.taps
    try:
        if len(jobs) == 1:
            packed = [
                codec.encode(
                    begun[0].matrix,
                    taps=taps,
                    stats=begun[0].used,
                    generator=generators[0],
                    report=report,
                )
            ]
        else:
            packed = codec.encode_each(
                [each.matrix for each in begun],
                taps=taps,
                stats=[each.used for each in begun],
                generators=generators,
            )
    except UserError as error:
        if len(jobs) > 1:  # one by one they say which it is
            return [encode_layers([job], seed, report)[0] for job in jobs]
        raise UserError(error.what, where=names[0], remedy=error.remedy) from error
    found = [each.ended(job, result) for each, job, result in zip(begun, jobs, packed, strict=True)]
    seconds = (time.perf_counter() - started) / len(jobs)
    return [replace(layer, seconds=seconds) for layer in found]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Begun:
    """What a codec is given of a layer: the matrix and moments of its inputs, smoothed.

    Attributes:
        used: the moments that the codec takes; whole: with the mean in them.
    """

    matrix: torch.Tensor
    used: InputStats | None
    whole: InputStats | None
    mean: torch.Tensor | None

    @classmethod
    def of(cls, job: LayerJob, codec: Codec[Any]) -> _Begun:
        """Returns what a codec is given."""
        matrix, stats = job.matrix, job.stats
        if job.smoothing is not None:
            matrix, stats = _smoothed(matrix, stats, job.smoothing)
        used = stats if codec.uses_hessian else None
        mean = None if used is None or job.bias is None else used.mean
        if used is not None and used.hessian is not None and mean is not None:
            used = replace(used, hessian=_covariance(used.hessian, mean))
        return cls(matrix=matrix, used=used, whole=stats, mean=mean)

    def ended(self, job: LayerJob, packed: Packed) -> EncodedLayer:
        """Returns the layer with what it lost."""
        decoded = packed.decode()
        corrected = output_error = None
        used, mean, matrix = self.used, self.mean, self.matrix
        if used is not None:
            lost = matrix.float() - decoded
            if job.bias is not None and mean is not None:
                corrected = (job.bias.float() + lost @ mean).half()
            if used.hessian is not None and self.whole is not None:
                own = self.whole.hessian
                whole = own if own is not None else used.hessian
                output_error = decibels(_power(lost, used.hessian), _power(matrix.float(), whole))
            del lost
        if job.smoothing is not None:
            decoded = fold_smoothing(decoded, job.smoothing)
        return EncodedLayer(
            packed=packed,
            bias=corrected,
            error_db=error_db(job.matrix, decoded),
            output_error_db=output_error,
            seconds=0.0,
        )


def error_db(weight: torch.Tensor, decoded: torch.Tensor) -> float | None:
    """Returns 10 log10(‖W-Ŵ‖² / ‖W‖²) to a thousandth, or None when nothing was lost."""
    lost = energy = 0.0
    for mine, other in zip(weight.split(_ROWS), decoded.split(_ROWS), strict=True):
        exact = mine.double()
        energy += float(exact.square().sum())
        lost += float(exact.sub_(other).square_().sum())
    return decibels(lost, energy)


def decibels(lost: float, energy: float) -> float | None:
    """Returns 10 log10(lost / energy) to a thousandth, None where either is nothing.

    Rounded, because the last digits of a sum depend on the number of threads, and the value goes
    into a file that must be the same wherever it is made.
    """
    return None if lost <= 0 or energy <= 0 else round(10 * math.log10(lost / energy), 3)


def _smoothed(
    matrix: torch.Tensor, stats: InputStats | None, smoothing: torch.Tensor
) -> tuple[torch.Tensor, InputStats | None]:
    """Returns W diag(s) and the moments of x / s, tap by tap."""
    factors = smoothing.float().repeat(matrix.shape[1] // len(smoothing))
    wide = matrix.float() * factors
    if stats is None:
        return wide, None
    hessian = stats.hessian
    if hessian is not None:
        hessian = hessian / factors[:, None] / factors
    mean = None if stats.mean is None else stats.mean / factors
    return wide, replace(stats, hessian=hessian, mean=mean)


def _covariance(hessian: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Returns E[x xᵀ] − E[x] E[x]ᵀ; rounding must not leave a constant input a negative power."""
    centred = hessian.addr(mean, mean, alpha=-1)
    centred.diagonal().clamp_(min=0)
    return centred


def _power(weight: torch.Tensor, hessian: torch.Tensor) -> float:
    """Returns tr(W H Wᵀ), the power of the outputs."""
    return float((weight @ hessian).mul_(weight).sum(dtype=torch.float64))


def within(report: Report, at: Event) -> Report:
    """Returns the report of a codec: it may cancel, but the stage stays "layer k of n", `at`."""

    def inner(event: Event, /) -> None:
        text = f"{at.message}: {event.message}" if event.message else at.message
        report(replace(at, message=text))

    return inner
