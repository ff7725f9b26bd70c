"""Other people's quantizers beside ours, where they are installed: one stack of transformer blocks.

All in one run, on copies of the same blocks of SDXL's widest level, in eager mode, each library
with the settings its own documentation starts with. None is needed; what is absent, or refuses the
card, is said in the table. Memory is what the card has given away more than before, all of it.
"""

from __future__ import annotations

import copy
import gc
import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import util
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from benchmarks import gpu_denoiser
from vqdq.layers.quantized import QuantizedLayer

if TYPE_CHECKING:
    from benchmarks.gpu_bench import Bench

SMALL = gpu_denoiser.Size(widths=(128,), depths=(1,), text=64, tokens=5, latent=4, head=32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """A library and one of its settings.

    Attributes:
        library: what is imported; name: for the table.
        make: quantizes the linear layers of a module on its device, in place or not, and returns
            it.
    """

    library: str
    name: str
    make: Callable[[nn.Module], nn.Module]


def _linears(model: nn.Module, made: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """Replaces every linear layer."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, made(layer))
    return model


def _bitsandbytes(kind: str, layer: nn.Linear) -> nn.Module:
    library: Any = importlib.import_module("bitsandbytes").nn
    sizes, device = (layer.in_features, layer.out_features), layer.weight.device
    if kind == "nf4":
        there = library.Linear4bit(
            *sizes, layer.bias is not None, compute_dtype=layer.weight.dtype, quant_type="nf4"
        )
    else:
        there = library.Linear8bitLt(*sizes, layer.bias is not None, has_fp16_weights=False)
    there.load_state_dict(layer.cpu().state_dict())
    return there.to(device)  # it is quantized on the way


def _hqq(bits: int, layer: nn.Linear) -> nn.Module:
    library: Any = importlib.import_module("hqq.core.quantize")
    settings = library.BaseQuantizeConfig(nbits=bits, group_size=64)
    weight = layer.weight
    return library.HQQLinear(
        layer, settings, compute_dtype=weight.dtype, device=str(weight.device), del_orig=True
    )


def _torchao(config: str, settings: dict[str, Any], model: nn.Module) -> nn.Module:
    library: Any = importlib.import_module("torchao.quantization")
    library.quantize_(model, getattr(library, config)(**settings))
    return model


def _sdnq(settings: dict[str, Any], model: nn.Module) -> nn.Module:
    library: Any = importlib.import_module("sdnq")
    device = next(model.parameters()).device
    return library.sdnq_post_load_quant(
        model, add_skip_keys=False, quantization_device=device, return_device=device, **settings
    )


PEERS = (
    Peer(
        library="sdnq",
        name="SDNQ, 4 bits",
        make=partial(_sdnq, {"weights_dtype": "uint4"}),
    ),
    Peer(
        library="sdnq",
        name="SDNQ, W8A8",
        make=partial(_sdnq, {"weights_dtype": "int8", "use_quantized_matmul": True}),
    ),
    Peer(
        library="torchao",
        name="torchao, int4 in groups of 64",
        make=partial(
            _torchao,
            "Int4WeightOnlyConfig",
            {"group_size": 64, "int4_packing_format": "tile_packed_to_4d"},
        ),
    ),
    Peer(
        library="torchao",
        name="torchao, W8A8",
        make=partial(_torchao, "Int8DynamicActivationInt8WeightConfig", {}),
    ),
    Peer(
        library="torchao",
        name="torchao, fp8",
        make=partial(_torchao, "Float8DynamicActivationFloat8WeightConfig", {}),
    ),
    Peer(
        library="bitsandbytes",
        name="bitsandbytes, NF4",
        make=partial(_linears, made=partial(_bitsandbytes, "nf4")),
    ),
    Peer(
        library="bitsandbytes",
        name="bitsandbytes, W8A8",
        make=partial(_linears, made=partial(_bitsandbytes, "int8")),
    ),
    Peer(library="hqq", name="HQQ, 4 bits", make=partial(_linears, made=partial(_hqq, 4))),
    Peer(library="hqq", name="HQQ, 3 bits", make=partial(_linears, made=partial(_hqq, 3))),
)


@torch.inference_mode()
def peers(bench: Bench) -> None:
    """Measures the blocks in bf16, in our modes and in those of every library that is there."""
    size, dtype = (SMALL if bench.tiny else gpu_denoiser.SDXL), torch.bfloat16
    width, side = size.widths[-1], size.latent // 4
    with torch.device(bench.device):
        made = gpu_denoiser.Transformer(width, size.depths[-1], size)
        maps = torch.randn(2, width, side, side, dtype=dtype)
        text = torch.randn(2, size.tokens, size.text, dtype=dtype)
    model = made.to(dtype).requires_grad_(False).eval()
    base = bench.timed("peers", "bf16 blocks", lambda: model(maps, text))

    def measured(name: str, make: Callable[[nn.Module], nn.Module]) -> None:
        before = _allocated(bench)
        there = make(copy.deepcopy(model))
        finite = bool(there(maps, text).isfinite().all())
        note = "" if bench.tiny else f"{(_allocated(bench) - before) / dense:.2f} of bf16's memory"
        note += "" if finite else "; its output is not finite"
        seconds = bench.timed("peers", name, lambda: there(maps, text), note=note)
        bench.add("peers", f"{name} over bf16", seconds / base, "×", note="same run")

    dense = sum(parameter.nbytes for parameter in model.parameters())
    for name, make in _ours(bench):
        measured(name, make)
    for peer in PEERS:
        if bench.is_late:
            return
        if util.find_spec(peer.library) is None:
            bench.absent("peers", peer.name, "not installed")
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                measured(peer.name, peer.make)
        except Exception as error:  # theirs: it says nothing of what else is measured
            text_of = " ".join(str(error).split())[:120]
            bench.absent("peers", peer.name, f"fails here: {type(error).__name__}: {text_of}")


def _ours(bench: Bench) -> tuple[tuple[str, Callable[[nn.Module], nn.Module]], ...]:
    def packed(model: nn.Module) -> nn.Module:
        state_bits, every = (8, 6) if bench.tiny else (12, 1)
        gpu_denoiser.pack_(model, 3, state_bits, bench.device, every)
        return model

    def resident(model: nn.Module) -> nn.Module:
        for layer in packed(model).modules():
            if isinstance(layer, QuantizedLayer):
                layer.residency = "resident"
        return model

    def rounded(model: nn.Module, method: str) -> nn.Module:
        gpu_denoiser.round_inputs_(packed(model), method)
        return model

    return (
        ("ours, 3 bits streaming", packed),
        ("ours, 3 bits resident", resident),
        ("ours, W3A8 in integers", partial(rounded, method="rotated")),
        ("ours, W3A8 in 8-bit floats", partial(rounded, method="fp8")),
    )


def _allocated(bench: Bench) -> int:
    """Returns the bytes that are in use on the card."""
    gc.collect()
    return 0 if bench.tiny else torch.cuda.memory_allocated()
