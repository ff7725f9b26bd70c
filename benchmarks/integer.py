"""Integer arithmetic against float: a linear layer, the embedded denoiser, one of SD 1.5's size."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import vqdq
from benchmarks.timing import Seconds, interleaved, table
from vqdq import activations, codecs
from vqdq.activations.base import FEWEST_PRODUCTS, ActivationQuantizer, InputRanges, Site
from vqdq.kernels.threads import one_thread
from vqdq.layers.execution import executions
from vqdq.layers.inputs import PREFIX, LayerInput, NoiseLevel
from vqdq.layers.matrix import kind_of, weight_matrix
from vqdq.layers.quantized import QuantizedConv2d, QuantizedLayer, QuantizedLinear, pack

WIDTH, TOKENS = 1280, 1024
_GRIDS: Mapping[str, tuple[str, str, dict[str, Any]]] = {  # axis: codec, quantizer, settings
    "tensor": ("int8", "minmax", {}),
    "token, dynamic": ("int8", "dynamic", {}),
    "position, 8 groups": ("int8", "dgq", {"groups": 8}),
    "channel, 8 groups": ("int8", "dgq", {"groups": 8}),
    "rotated, 3-bit trellis": ("trellis", "rotated", {}),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What a layer was given: positions of all samples together, and their extremes."""

    rows: int
    ranges: InputRanges

    @classmethod
    def of(cls, module: nn.Module, values: torch.Tensor) -> Seen:
        """Returns what one call of a layer shows."""
        maps = isinstance(module, nn.Conv2d)
        rows = values.flatten(2).mT if maps else values.reshape(len(values), -1, values.shape[-1])
        ranges = InputRanges(
            timesteps=torch.tensor([500.0]),
            channel_low=rows.amin((0, 1))[None],
            channel_high=rows.amax((0, 1))[None],
            position_low=rows.amin((0, 2))[None],
            position_high=rows.amax((0, 2))[None],
        )
        return cls(rows=rows.shape[0] * rows.shape[1], ranges=ranges)


def packed(
    dense: nn.Module, quantizer: ActivationQuantizer[Any], codec: str, seen: Seen, level: NoiseLevel
) -> QuantizedLinear | QuantizedConv2d:
    """Returns a layer with weights of `codec`, and its input quantized by what was seen of it."""
    matrix, taps = weight_matrix(dense)
    chosen = codecs.create(codec, clip="absmax") if codec == "int8" else codecs.create(codec)
    layer = pack(dense, chosen.encode(matrix, taps=taps))
    ranges = seen.ranges
    site = Site(
        channels=ranges.channel_low.shape[1], positions=ranges.position_low.shape[1], taps=taps
    )
    stored = quantizer.calibrate(ranges, site) if quantizer.calibrated else {}
    names = {PREFIX + name: tensor for name, tensor in stored.items()}
    layer.quantize_input_(LayerInput(quantizer, site, level, where="a layer"), names)
    return layer


def convert_(model: nn.Module, call: Callable[[], object], smallest: int = 0) -> int:
    """Makes the layers of a denoiser W8A8, but for its first and its last; returns how many.

    Args:
        call: runs the model once: its ranges are those of this call.
        smallest: layers of fewer products in that call stay as they are.
    """
    layers = {name: layer for name, layer in model.named_modules() if kind_of(layer) is not None}
    seen: dict[str, Seen] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        return lambda module, args: seen.update({name: Seen.of(module, args[0])})

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    call()
    for handle in handles:
        handle.remove()
    level = NoiseLevel()
    level.attach_(model)
    count = 0
    for name in list(seen)[: len(layers)]:
        layer = layers[name]
        steps = layer.stride[0] * layer.stride[1] if isinstance(layer, nn.Conv2d) else 1
        products = seen[name].rows * layer.get_parameter("weight").numel() // steps
        if name in ("conv_in", "conv_out") or products < smallest:
            continue
        quantizer = activations.create("minmax")
        model.set_submodule(name, packed(layer, quantizer, "int8", seen[name], level))
        count += 1
    return count


def linears() -> str:
    """Returns a table: 1280 × 1280 at 1024 tokens, quantization of the input included."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, TOKENS, WIDTH, generator=generator)
    dense = nn.Linear(WIDTH, WIDTH)
    half, halved = copy.deepcopy(dense).bfloat16(), inputs.bfloat16()
    work: dict[str, Callable[[], object]] = {
        "fp32": functools.partial(dense, inputs),
        "bf16": functools.partial(half, halved),
    }
    for title, (codec, method, settings) in _GRIDS.items():
        spread = inputs.clone()  # which axis has the outliers decides what is grouped
        if title.startswith("channel"):
            spread[..., ::7] *= 10
        else:
            spread[:, ::7] *= 10
        layer = copy.deepcopy(dense)
        quantizer = activations.create(method, **settings)
        seen = Seen.of(layer, spread)
        work[title] = functools.partial(packed(layer, quantizer, codec, seen, NoiseLevel()), inputs)
    with torch.inference_mode():
        taken = interleaved(work, repeats=15)
    rows = [_row(title, time, taken["fp32"], taken["bf16"]) for title, time in taken.items()]
    return table(["1280 × 1280, 1024 tokens", "ms", "times fp32", "times bf16"], rows)


def _row(title: str, time: Seconds, full: Seconds, half: Seconds) -> list[str]:
    milliseconds = Seconds(median=time.median * 1e3, low=time.low * 1e3, high=time.high * 1e3)
    ratios = (full.median / time.median, half.median / time.median)
    return [title, str(milliseconds), *(f"{ratio:.2f}" for ratio in ratios)]


def small() -> str:
    """Returns a table: layers too small for integers, a calibrated range for the tensor."""
    rows: list[list[str]] = []
    for tokens, width in ((2, 512), (2, 1280), (32, 256), (77, 768), (64, 320), (256, 640)):
        inputs, dense = torch.randn(1, tokens, width), nn.Linear(width, width)
        quantizer = activations.create("minmax")
        seen = Seen.of(dense, inputs)
        layer = packed(copy.deepcopy(dense), quantizer, "int8", seen, NoiseLevel())
        work = {"fp32": functools.partial(dense, inputs), "W8A8": functools.partial(layer, inputs)}
        with torch.inference_mode():
            taken = interleaved(work, repeats=51)
        ratio = taken["fp32"].median / taken["W8A8"].median
        millions = tokens * width**2 / 1e6
        rows.append([f"{tokens} × {width} × {width}", f"{millions:.1f}", f"{ratio:.2f}"])
    return table(["tokens × in × out", "million products", "times fp32"], rows)


def denoisers() -> str:
    """Returns a table: whole denoisers, W8A8 but for the first and the last convolution."""
    everything = {"W8A8": (0, torch.float32), "W8A8 in bf16": (0, torch.bfloat16)}
    faster = {"W8A8 where it is faster": (2 * FEWEST_PRODUCTS, torch.float32)}
    embedded, large = "embedded, 16 × 16, batch 2", "SD 1.5's size, 64 × 64, batch 1"
    unet = vqdq.load("demo").unet
    rows = _denoiser(embedded, unet, (2, 4, 16), (24, 128), everything | faster, 21)
    with one_thread():
        title = "embedded, on one core"
        rows += _denoiser(title, unet, (2, 4, 16), (24, 128), faster, 21)
    rows += _denoiser(large, _large(), (1, 4, 64), (77, 768), everything, 3)
    head = ["denoiser", "fp32 ms", "bf16 ms", "W8A8 ms", "times fp32", "times bf16", "integer"]
    return table([*head, "MB fp32", "MB W8A8"], rows)


def _large() -> nn.Module:
    """Returns a denoiser with the sizes of Stable Diffusion 1.5 and random weights."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


def _denoiser(
    title: str,
    model: nn.Module,
    latents: tuple[int, int, int],
    text: tuple[int, int],
    variants: Mapping[str, tuple[int, torch.dtype]],
    repeats: int,
) -> list[list[str]]:
    """Returns the rows of one denoiser, one for each variant: the products of its smallest
    quantized layer, and the dtype of everything else."""
    generator = torch.Generator().manual_seed(1)
    batch, channels, side = latents
    noisy = torch.randn(batch, channels, side, side, generator=generator)
    prompt = torch.randn(batch, *text, generator=generator)

    def call(denoiser: nn.Module, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        with torch.inference_mode():
            return denoiser(noisy.to(dtype), torch.tensor(500), prompt.to(dtype)).sample

    full = model.eval()
    half = copy.deepcopy(full).bfloat16()
    work: dict[str, Callable[[], object]] = {
        "fp32": functools.partial(call, full),
        "bf16": functools.partial(call, half, torch.bfloat16),
    }
    made: dict[str, nn.Module] = {}
    for name, (smallest, dtype) in variants.items():
        made[name] = copy.deepcopy(half if dtype == torch.bfloat16 else full)
        run = functools.partial(call, made[name], dtype)
        convert_(made[name], run, smallest)
        work[name] = run
    taken = interleaved(work, repeats=repeats)
    rows: list[list[str]] = []
    for name, quantized in made.items():
        told = list(executions(quantized).values())
        integer = sum(how.kind == "integer" for how in told)
        ratios = [taken[other].median / taken[name].median for other in ("fp32", "bf16")]
        times = [_milliseconds(taken[key]) for key in ("fp32", "bf16", name)]
        sizes = [f"{_bytes(module) / 1e6:.0f}" for module in (full, quantized)]
        said = f"{integer} of {len(told)}"
        rows.append([f"{title}: {name}", *times, *(f"{r:.2f}" for r in ratios), said, *sizes])
    return rows


def _bytes(model: nn.Module) -> int:
    """Returns the bytes of all tensors a model holds, those that kernels have packed included."""
    held = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    total = sum(tensor.numel() * tensor.element_size() for tensor in held.values())
    for layer in model.modules():
        if isinstance(layer, QuantizedLayer) and layer.input is not None:
            total += layer.input.weight(layer).num_bytes
    return total


def _milliseconds(time: Seconds) -> str:
    return f"{time.median * 1e3:.0f} ({time.low * 1e3:.0f}–{time.high * 1e3:.0f})"


def run() -> str:
    """Returns all tables."""
    return "\n\n".join((linears(), small(), denoisers()))
