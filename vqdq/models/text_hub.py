"""The transformers plug-in: after `import vqdq`, `from_pretrained` opens a compressed text encoder.

With `quantization_config=VqdqConfig.of(recipe)` it compresses a 16-bit one while it loads.

Without the import transformers only warns of a quantization that it does not know, and would fill
the missing weights with random numbers. The file therefore holds an empty tensor under the name of
one of those weights (`vqdq.shapes.Component.guarded`), at which transformers fails.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer

from vqdq.errors import UserError
from vqdq.layers.quantized import QuantizedLayer, unpack
from vqdq.layers.surgery import quantize_
from vqdq.models.adapters import refuse_saving
from vqdq.models.casting import let_casts_pass, lossless_half
from vqdq.models.packed_config import Method, VqdqConfig
from vqdq.models.weights import open_weights
from vqdq.recipe import guard
from vqdq.tensors import TensorSpec

if TYPE_CHECKING:
    from vqdq.models.text_loading import TextLoading

_INCOMPLETE = "The file is incomplete: copy the folder again."
_APART = "The weights and config.json do not belong together: copy the folder again."


class VqdqTextQuantizer(HfQuantizer):
    """Builds packed layers on the meta device; transformers fills them with the stored tensors."""

    quantization_config: VqdqConfig

    def __init__(self, quantization_config: VqdqConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._dtype = torch.float32
        self._names: dict[str, str] = {}  # layer in the file -> in the model
        self._stored: set[str] = set()  # packed tensors, by their keys in the model
        self._loading: TextLoading | None = None  # of a model that is compressed while it loads

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Returns the dtype to compute in; it never reaches the packed tensors."""
        self._dtype = dtype
        return dtype

    def get_new_dtype(
        self, converter: Any, param: Any, dtype: torch.dtype | None
    ) -> torch.dtype | None:
        """Returns None for packed tensors, which are not cast, whatever transformers casts."""
        if self._stored.intersection(converter.target_patterns):
            return None
        return super().get_new_dtype(converter, param, dtype)

    def named_(self, names: Mapping[str, str]) -> None:
        """Learns where the model has each layer, by its name in the file."""
        self._names = dict(names)
        for key in self.quantization_config.stored():
            layer, _, tensor = key.rpartition(".")
            self._stored.add(f"{self._names[layer]}.{tensor}")

    def get_state_dict_and_metadata(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model: nn.Module
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Returns what to save: kept tensors in 16 bits where nothing is lost, tied ones once."""
        refuse_saving(model.state_dict())
        ready: dict[str, torch.Tensor] = {}
        halves: dict[tuple[int, tuple[int, ...]], torch.Tensor] = {}
        for key, tensor in model.state_dict().items():
            if key in self._stored:
                ready[key] = tensor
                continue
            same = (tensor.data_ptr(), tuple(tensor.shape))
            if same not in halves:
                halves[same] = lossless_half(tensor)
            ready[key] = halves[same]
        ready[self._guard] = torch.empty(0, dtype=torch.float16)
        return ready, {}

    @property
    def _guard(self) -> str:
        """Key in the model of the empty tensor: the layer is the first by its name in the file."""
        return f"{self._names[guard(self._names).name.removesuffix('.weight')]}.weight"

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: Iterable[str] | None = None, **kwargs: Any
    ) -> None:
        from vqdq.models.text_parts import layer_paths  # not yet there while this is imported

        del kwargs
        let_casts_pass(_pretrained())
        if not self.pre_quantized:
            from vqdq.models.text_loading import TextLoading

            paths = None if checkpoint_files is None else list(map(Path, checkpoint_files))
            self._loading = TextLoading(model, self.quantization_config, paths)
            return
        config, expected = self.quantization_config, self.quantization_config.expected()
        self.named_(layer_paths(model, config.layers))
        if checkpoint_files is not None:
            _check_files(map(Path, checkpoint_files), config.stored())
        quantize_(model, {self._names[name]: packed for name, packed in expected.items()})
        for path in self._names.values():
            # transformers initialises what is missing and asks every layer for its weight; flagged
            # as done, it is left alone, and nothing is decoded before there is anything to decode.
            layer = model.get_submodule(path)
            shape = (
                (layer.out_features, layer.in_features) if isinstance(layer, nn.Linear) else (0,)
            )
            known = torch.empty(shape, dtype=self._dtype, device="meta")
            cast(Any, known)._is_hf_initialized = True
            layer.__dict__["weight"] = known
        target = cast(Any, model)
        ignored = set(target._keys_to_ignore_on_load_unexpected or ())
        target._keys_to_ignore_on_load_unexpected = ignored | {re.escape(self._guard)}

    def _process_model_after_weight_loading(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model: nn.Module, **kwargs: Any
    ) -> None:
        del kwargs
        if self._loading is not None:
            self.quantization_config, names = self._loading.finish_(model)
            self.named_(names)
            cast(Any, model).config.quantization_config = self.quantization_config
            self.pre_quantized, self._loading = True, None
            return
        kept = cast(Any, model)._get_dtype_plan(self._dtype)
        for path in self._names.values():
            layer = model.get_submodule(path)
            assert isinstance(layer, QuantizedLayer)
            layer.__dict__.pop("weight", None)
            for name in layer.packed_names:
                tensor = layer.get_buffer(name)
                if tensor.is_meta:
                    raise UserError(
                        "is not in the file.", where=f"{path}.{name}", remedy=_INCOMPLETE
                    )
                # A copy: the loaded tensor may be a view of the mapped file.
                layer.register_buffer(name, tensor.clone())
            wide = next((kept[key] for key in kept if _named(key, f"{path}.weight")), self._dtype)
            layer.set_dtype_(wide)

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        del dtype
        for name, layer in list(model.named_modules()):
            if isinstance(layer, QuantizedLayer):
                model.set_submodule(name, unpack(layer))
        return model

    def is_serializable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """True: `save_pretrained` writes a folder that opens again, bit for bit."""
        return True

    @property
    def is_trainable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """True: gradients reach the inputs, so adapters can be trained beside packed layers."""
        return True


def attach_text_(model: nn.Module, config: VqdqConfig, names: Mapping[str, str]) -> None:
    """Marks a model with packed layers as quantized, as if transformers had loaded it.

    Args:
        names: where the model has each layer, by its name in the file.
    """
    quantizer = VqdqTextQuantizer(config)
    target = cast(Any, model)
    quantizer.update_dtype(target.dtype)
    quantizer.named_(names)
    target.config.quantization_config = config
    target.config._is_quantized = True
    target.is_quantized = True
    target.quantization_method = config.quant_method
    target.hf_quantizer = quantizer
    let_casts_pass(_pretrained())


def register() -> None:
    """Adds the plug-in to transformers' tables; harmless when repeated."""
    auto.AUTO_QUANTIZER_MAPPING[Method.VQDQ.value] = VqdqTextQuantizer  # pyright: ignore[reportArgumentType]
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[Method.VQDQ.value] = VqdqConfig  # pyright: ignore[reportArgumentType]


def _pretrained() -> type[nn.Module]:
    from transformers import PreTrainedModel  # not yet there while this module is imported

    return PreTrainedModel


def _named(pattern: str, key: str) -> bool:
    """Whether transformers keeps a tensor in float32 by that pattern: a part of its dotted name."""
    return re.search(rf"(^|\.){pattern}($|\.)", key) is not None


def _check_files(paths: Iterable[Path], expected: Mapping[str, TensorSpec]) -> None:
    """Raises `UserError` for a packed tensor that is missing or is not what its method needs."""
    found = {key: spec for path in paths for key, spec in open_weights(path).tensors.items()}
    for key, spec in expected.items():
        if key not in found:
            raise UserError("is not in the file.", where=key, remedy=_INCOMPLETE)
        stored = found[key]
        if (stored.dtype, stored.shape) != (spec.dtype, spec.shape):
            raise UserError(
                f"is stored as {stored.dtype} {list(stored.shape)}, "
                f"its method needs {spec.dtype} {list(spec.shape)}.",
                where=key,
                remedy=_APART,
            )


register()  # importing this module is the registration; see `vqdq.plugin`
