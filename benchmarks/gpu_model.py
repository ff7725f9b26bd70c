"""A denoiser of SDXL's size on a card: bf16 beside 3-bit weights kept in every way."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from benchmarks import gpu_denoiser
from vqdq.layers import execution, residency
from vqdq.layers.quantized import QuantizedLayer

if TYPE_CHECKING:
    from benchmarks.gpu_bench import Bench

BITS, STATE_BITS = 3, 12


def _made(bench: Bench) -> tuple[nn.Module, tuple[torch.Tensor, ...], torch.dtype]:
    size = gpu_denoiser.TINY if bench.tiny else gpu_denoiser.SDXL
    dtype = torch.float32 if bench.tiny else torch.bfloat16
    with torch.device(bench.device):
        model = gpu_denoiser.Denoiser(size).to(dtype).requires_grad_(False).eval()
    if not bench.tiny:
        model = model.to(memory_format=torch.channels_last)
    return model, gpu_denoiser.inputs(size, bench.device, dtype), dtype


def _weights(model: nn.Module) -> int:
    """Returns the bytes of parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.nbytes for tensor in tensors)


def _measured(bench: Bench, name: str, call: Callable[[], object], base: float = 0.0) -> float:
    if not bench.tiny:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    seconds = bench.timed("denoiser", f"{name}, one call", call, repeats=15)
    if base:
        bench.add("denoiser", f"{name} over bf16", seconds / base, "×", note="same run")
    if not bench.tiny:
        peak = torch.cuda.max_memory_allocated() / 1e9
        bench.add("denoiser", f"{name}, peak memory", peak, "GB", note="everything counted")
    return seconds


@torch.inference_mode()
def denoiser(bench: Bench) -> None:
    """Measures one call with guidance in bf16 and in every mode of 3-bit weights, interleaved only
    with itself: medians of 15 calls each."""
    model, given, dtype = _made(bench)
    dense = _weights(model)
    bench.add("denoiser", "bf16, weights", dense / 1e9, "GB")
    base = _measured(bench, "bf16", lambda: model(*given))
    state_bits, every = (8, 12) if bench.tiny else (STATE_BITS, 1)
    packed = gpu_denoiser.pack_(model, BITS, state_bits, bench.device, every)
    bench.add(
        "denoiser", "3 bits, weights", _weights(model) / 1e9, "GB",
        note=f"{_weights(model) / dense:.2f} of bf16, {packed / 1e9:.2f} GB packed",
    )  # fmt: skip
    _measured(bench, "streaming from the card", lambda: model(*given), base)
    if bench.is_late:
        return
    if not bench.tiny:
        residency.set_mode_(model, "streaming", offload=True)
        _measured(bench, "streaming from the processor, one ahead", lambda: model(*given), base)
        source = residency.source_of(model)
        note = "weights on the card at once"
        peak = 0 if source is None else source.peak
        bench.add("denoiser", "one ahead, weights", peak / 1e9, "GB", note=note)
    residency.set_mode_(model, "resident")
    _measured(bench, "resident", lambda: model(*given), base)
    if bench.is_late:
        return
    for method, kind, words in (
        ("rotated", "integer", "in integers"),
        ("fp8", "fp8", "in 8-bit floats"),
    ):
        if bench.is_late:
            return
        for layer in model.modules():
            if isinstance(layer, QuantizedLayer):
                layer.forget_weight()
        gpu_denoiser.round_inputs_(model, method)
        found = execution.executions(model)
        whole = sum(each.kind == kind for each in found.values())
        note = f"{whole} of {len(found)} layers {words}"
        bench.add("denoiser", f"W3A8, layers {words}", whole / max(1, len(found)), "", note=note)
        _measured(bench, f"W3A8 {words}, levels kept", lambda: model(*given), base)
        if not bool(model(*given).isfinite().all()):
            bench.faults.append(f"denoiser: the output of W3A8 {words} is not finite")
    del dtype


@torch.inference_mode()
def compiled(bench: Bench) -> None:
    """Measures bf16 and resident 3-bit weights under torch.compile, of the middle alone: a whole
    denoiser takes longer to compile than this run may last."""
    if bench.tiny:
        return
    model, _, dtype = _made(bench)
    middle: Any = model.middle[1]
    width, side = gpu_denoiser.SDXL.widths[-1], gpu_denoiser.SDXL.latent // 4
    maps = torch.randn(2, width, side, side, device=bench.device, dtype=dtype)
    text = torch.randn(2, 77, gpu_denoiser.SDXL.text, device=bench.device, dtype=dtype)
    plain = bench.timed("compiled", "bf16 middle, eager", lambda: middle(maps, text))
    quick = torch.compile(middle)
    base = bench.timed("compiled", "bf16 middle", lambda: quick(maps, text))
    bench.add("compiled", "bf16 middle over eager", base / plain, "×")
    if bench.is_late:
        return
    gpu_denoiser.pack_(middle, BITS, STATE_BITS, bench.device)
    torch.compiler.reset()
    again = torch.compile(middle)
    seconds = bench.time(lambda: again(maps, text))
    bench.add(
        "compiled", "3 bits streaming, middle", statistics.median(seconds) * 1e3, "ms",
        min(seconds) * 1e3, max(seconds) * 1e3, f"{statistics.median(seconds) / base:.2f} × bf16",
    )  # fmt: skip
