"""The diffusers plug-in: after `import vqdq`, `from_pretrained` opens a compressed folder.

diffusers has no decorator for third-party quantizers, so importing this module adds ours to its two
tables. Without the import diffusers refuses the folder with "Unknown quantization type".
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, cast

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import nn

from vqdq import activations, codecs
from vqdq.activations.base import ActivationQuantizer, Site
from vqdq.codecs.base import Packed, WeightShape
from vqdq.errors import UserError
from vqdq.layers.inputs import input_layout
from vqdq.layers.quantized import QuantizedLayer, unpack
from vqdq.layers.surgery import quantize_, quantize_inputs_
from vqdq.tensors import TensorSpec

FORMAT_VERSION = 3  # 2: trellis columns in sequences of 256 rows; 3: inputs may be quantized
_READ = (2, 3)
_NEWER = "Install the version of vqdq that wrote the folder, or compress the model again."


class Method(StrEnum):
    """The name in `quant_method`; an enum because diffusers reads `.value`."""

    VQDQ = "vqdq"


class VqdqConfig(QuantizationConfigMixin):
    """What `config.json` says about a compressed component.

    Attributes:
        recipe: the recipe's JSON values.
        codecs: every method used, with all its settings.
        layers: layer name -> {codec: index into `codecs`, shape: [out, in], taps}, and where the
            input is quantized {activation: index into `activations`, positions}.
        activations: every activation quantizer used, with all its settings.
    """

    def __init__(
        self,
        *,
        recipe: Mapping[str, Any],
        codecs: list[dict[str, Any]],
        layers: Mapping[str, dict[str, Any]],
        activations: list[dict[str, Any]] | None = None,
        version: int = FORMAT_VERSION,
        quant_method: str = Method.VQDQ.value,
    ) -> None:
        self.quant_method = cast(Any, Method(quant_method))
        self.version = version
        self.recipe = dict(recipe)
        self.codecs = codecs
        self.layers = dict(layers)
        self.activations = activations or []
        if version not in _READ:
            raise UserError(
                f"format version {version!r} is not known.", where="config.json", remedy=_NEWER
            )

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values; the enum as its text."""
        values = copy.deepcopy(self.__dict__)
        values["quant_method"] = self.quant_method.value
        return values

    def __repr__(self) -> str:
        return f"VqdqConfig(recipe={self.recipe.get('name')!r}, layers={len(self.layers)})"

    def expected(self) -> dict[str, Packed]:
        """Returns every layer's packed weight on the meta device: names, dtypes and shapes only.

        Raises:
            UserError: an unknown method or setting, or a malformed entry (the layer is named).
        """
        built = [_codec(entry) for entry in self.codecs]
        found: dict[str, Packed] = {}
        for name, entry in self.layers.items():
            try:
                codec = built[entry["codec"]]
                rows, columns = entry["shape"]
                shape = WeightShape(out_features=rows, in_features=columns, taps=entry["taps"])
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise UserError(
                    "its entry in config.json is malformed.", where=name, remedy=_NEWER
                ) from error
            found[name] = Packed(
                codec=codec.name,
                params=codec.params,
                shape=shape,
                tensors={
                    spec.name: torch.empty(spec.shape, dtype=spec.dtype, device="meta")
                    for spec in codec.layout(shape)
                },
            )
        return found

    def inputs(self) -> dict[str, tuple[ActivationQuantizer[Any], Site]]:
        """Returns the quantizer of each layer's input and where it stands.

        Raises:
            UserError: an unknown method or setting, or a malformed entry (the layer is named).
        """
        built = [_quantizer(entry) for entry in self.activations]
        found: dict[str, tuple[ActivationQuantizer[Any], Site]] = {}
        for name, entry in self.layers.items():
            if entry.get("activation") is None:
                continue
            try:
                taps = entry["taps"]
                site = Site(
                    channels=entry["shape"][1] // taps, positions=entry["positions"], taps=taps
                )
                found[name] = (built[entry["activation"]], site)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise UserError(
                    "its entry in config.json is malformed.", where=name, remedy=_NEWER
                ) from error
        return found

    def stored(self) -> dict[str, tuple[TensorSpec, ...]]:
        """Returns every tensor that packed layers store, by layer, as the file names them."""
        inputs = self.inputs()
        return {
            name: (
                *packed.storage.tensors,
                *(input_layout(*inputs[name]) if name in inputs else ()),
            )
            for name, packed in self.expected().items()
        }


def _codec(entry: Mapping[str, Any]) -> codecs.Codec[Any]:
    try:
        kind = codecs.get(entry["method"])
        params = kind.settings.from_json(entry["params"], where=entry["method"])
    except (KeyError, TypeError) as error:
        raise UserError("the table of methods is malformed.", where="config.json") from error
    except UserError as error:
        raise UserError(error.what, where=error.where, remedy=_NEWER) from error
    return kind(params)  # a peer that is absent says how to install it


def _quantizer(entry: Mapping[str, Any]) -> ActivationQuantizer[Any]:
    try:
        kind = activations.get(entry["method"])
        params = kind.settings.from_json(entry["params"], where=entry["method"])
    except (KeyError, TypeError) as error:
        raise UserError("the table of activations is malformed.", where="config.json") from error
    except UserError as error:
        raise UserError(error.what, where=error.where, remedy=_NEWER) from error
    return kind(params)


class VqdqQuantizer(DiffusersQuantizer):
    """Builds packed layers on the meta device and fills them with the stored tensors, uncast."""

    use_keep_in_fp32_modules = True

    def __init__(self, quantization_config: VqdqConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.quantization_config: VqdqConfig = quantization_config
        self._dtype = torch.float32
        if not self.pre_quantized:
            raise UserError(
                "from_pretrained opens compressed folders, it does not compress.",
                where="quantization_config",
                remedy="Use vqdq.compress(pipeline, recipe).",
            )

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns the dtype to compute in; it never reaches the packed tensors."""
        self._dtype = torch_dtype or torch.float32
        return self._dtype

    def check_if_quantized_param(
        self, model: nn.Module, param_value: Any, param_name: str, state_dict: Any, **kwargs: Any
    ) -> bool:
        """Returns True for the tensors of packed layers, so that diffusers leaves them to us."""
        del param_value, state_dict, kwargs
        return _owner(model, param_name) is not None

    def check_quantized_param_shape(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, param_name: str, current_param: torch.Tensor, loaded_param: torch.Tensor
    ) -> bool:
        """Raises `UserError`: a stored tensor has another shape than its layer's method says."""
        raise UserError(
            f"is stored as {list(loaded_param.shape)}, "
            f"its method needs {list(current_param.shape)}.",
            where=param_name,
            remedy="The weights and config.json do not belong together: copy the folder again.",
        )

    def create_quantized_param(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model: nn.Module,
        param_value: torch.Tensor,
        param_name: str,
        target_device: Any,
        state_dict: Mapping[str, torch.Tensor],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Puts a stored tensor into its layer.

        diffusers hands over `param_value` already cast to the model's dtype; the tensor in
        `state_dict` is the one that was stored, and it is the only one that decodes to the same
        model in every dtype.
        """
        del param_value, args, kwargs
        layer = _owner(model, param_name)
        name = param_name.rpartition(".")[2]
        stored = state_dict[param_name]
        assert layer is not None
        expected = TensorSpec.of(param_name, layer.get_buffer(name))
        if TensorSpec.of(param_name, stored) != expected:
            raise UserError(
                f"is stored as {stored.dtype}, its method needs {expected.dtype}.",
                where=param_name,
                remedy="The weights and config.json do not belong together: copy the folder again.",
            )
        # A copy: the loaded tensor may be a view of the mapped file, which could change under us.
        layer.register_buffer(name, stored.to(target_device, copy=True))

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, torch.Tensor], safe_serialization: bool = False
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Returns what to save: kept tensors in 16 bits wherever that loses nothing."""
        del safe_serialization
        packed = {
            f"{name}.{spec.name}"
            for name, specs in self.quantization_config.stored().items()
            for spec in specs
        }
        ready = {
            key: tensor if key in packed else _lossless_half(tensor)
            for key, tensor in state_dict.items()
        }
        return ready, {}

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        del kwargs
        config = self.quantization_config
        quantize_(model, config.expected())
        ghosts = {
            name: {
                spec.name: torch.empty(spec.shape, dtype=spec.dtype, device="meta")
                for spec in input_layout(*given)
            }
            for name, given in config.inputs().items()
        }
        quantize_inputs_(model, config.inputs(), ghosts)
        cast(Any, model).config.quantization_config = self.quantization_config

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        del kwargs
        for name, layer in model.named_modules():
            if isinstance(layer, QuantizedLayer):
                if any(layer.get_buffer(key).is_meta for key in layer.packed_names):
                    raise UserError(
                        "its packed weight is not in the file.",
                        where=name,
                        remedy="The file is incomplete: copy the folder again.",
                    )
                layer.set_dtype_(self._dtype)

    def _dequantize(self, model: nn.Module) -> nn.Module:
        for name, layer in list(model.named_modules()):
            if isinstance(layer, QuantizedLayer):
                if layer.input is not None:
                    layer.input.level.detach_()
                model.set_submodule(name, unpack(layer))
        target = cast(Any, model)
        dense = {k: v for k, v in target.config.items() if k != "quantization_config"}
        target._internal_dict = FrozenDict(dense)
        return model

    @property
    def is_serializable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """True: `save_pretrained` writes a folder that opens again, bit for bit."""
        return True

    @property
    def is_trainable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """True: gradients reach the inputs, so adapters can be trained beside packed layers."""
        return True


def attach_(model: nn.Module, config: VqdqConfig) -> None:
    """Marks a model with packed layers as quantized, as if diffusers had loaded it."""
    quantizer = VqdqQuantizer(config)
    target = cast(Any, model)
    quantizer.update_torch_dtype(target.dtype)
    target.register_to_config(quantization_config=config)
    target.is_quantized = True
    target.quantization_method = config.quant_method
    target.hf_quantizer = quantizer


def register() -> None:
    """Adds the plug-in to diffusers' tables; harmless when repeated."""
    auto.AUTO_QUANTIZER_MAPPING[Method.VQDQ.value] = VqdqQuantizer  # pyright: ignore[reportArgumentType]
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[Method.VQDQ.value] = VqdqConfig  # pyright: ignore[reportArgumentType]


def _owner(model: nn.Module, key: str) -> QuantizedLayer | None:
    path, _, name = key.rpartition(".")
    layer = model.get_submodule(path)
    if isinstance(layer, QuantizedLayer) and name in layer.packed_names:
        return layer
    return None


def _lossless_half(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor


register()  # importing this module is the registration; see `vqdq.plugin`
