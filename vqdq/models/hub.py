"""The diffusers plug-in: after `import vqdq`, `from_pretrained` opens a compressed folder.

With `quantization_config=VqdqConfig.of(recipe)` it compresses a 16-bit one while it loads.

diffusers has no decorator for third-party quantizers, so importing this module adds ours to its two
tables. Without the import diffusers refuses the folder with "Unknown quantization type".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from torch import nn

from vqdq.errors import UserError
from vqdq.layers.attention import attach_attention_, attention_layout, detach_attention_
from vqdq.layers.inputs import forget_noise_level_, input_layout, noise_level_
from vqdq.layers.processor import AttentionQuantizer
from vqdq.layers.quantized import QuantizedLayer, unpack
from vqdq.layers.surgery import quantize_, quantize_inputs_
from vqdq.layers.text_cache import keep_text_
from vqdq.models.adapters import refuse_merging, refuse_saving, show_shapes
from vqdq.models.casting import let_casts_pass, lossless_half
from vqdq.models.mapped import MappedPages
from vqdq.models.packed_config import Method, VqdqConfig
from vqdq.recipe import Plan, PlannedLayer
from vqdq.tensors import TensorSpec


class VqdqQuantizer(DiffusersQuantizer):
    """Builds packed layers on the meta device and fills them with the stored tensors, uncast.

    Of a model that is not compressed each weight becomes a packed layer as it is read.
    """

    use_keep_in_fp32_modules = True

    def __init__(self, quantization_config: VqdqConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.quantization_config: VqdqConfig = quantization_config
        self._dtype = torch.float32
        self._wide = set[str]()  # modules that diffusers keeps in float32 whatever the dtype
        self._plan: Plan | None = None  # of a model that is compressed while it loads
        self._pending: dict[str, PlannedLayer] = {}  # weights to encode, by their keys
        self._pages = MappedPages()

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Returns the dtype to compute in; it never reaches the packed tensors."""
        self._dtype = torch_dtype or torch.float32
        return self._dtype

    def check_if_quantized_param(
        self, model: nn.Module, param_value: Any, param_name: str, state_dict: Any, **kwargs: Any
    ) -> bool:
        """Returns True for the tensors of packed layers, so that diffusers leaves them to us."""
        del param_value, state_dict, kwargs
        return self._plan is not None or _owner(model, param_name) is not None

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
        del args, kwargs
        stored = state_dict[param_name]
        if self._plan is not None:
            self._compress(model, param_name, stored, param_value.dtype, target_device)
            return
        layer = _owner(model, param_name)
        name = param_name.rpartition(".")[2]
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
        self._pages.copied(stored)

    def _compress(
        self, model: nn.Module, key: str, stored: torch.Tensor, dtype: torch.dtype, device: Any
    ) -> None:
        """Takes one tensor of a model that is not compressed: a weight to encode, or to keep."""
        from accelerate.utils import set_module_tensor_to_device

        from vqdq.models.checkpoint import half
        from vqdq.models.on_the_fly import packed_layer

        assert self._plan is not None
        item = self._pending.pop(key, None)
        if item is None:
            kept = half(stored, key).to(dtype)
            set_module_tensor_to_device(model, key, device, value=kept)
            return
        name = item.layer.name
        layer = packed_layer(
            model.get_submodule(name), stored, item, self._plan.recipe.seed, device
        )
        model.set_submodule(name, layer)
        self._pages.copied(stored)

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, torch.Tensor], safe_serialization: bool = False
    ) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Returns what to save: kept tensors in 16 bits wherever that loses nothing.

        Raises:
            UserError: an adapter is loaded.
        """
        del safe_serialization
        refuse_saving(state_dict)
        packed = self.quantization_config.stored()
        ready = {
            key: tensor if key in packed else lossless_half(tensor)
            for key, tensor in state_dict.items()
        }
        return ready, {}

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        _teach()
        self._wide = {name for name in kwargs.get("keep_in_fp32_modules") or () if name}
        config = self.quantization_config
        if not self.pre_quantized:
            from vqdq.models.on_the_fly import model_component, planned

            self._plan = planned(config, model_component(model))
            self._pending = {f"{item.layer.name}.weight": item for item in self._plan.quantized}
            return
        quantize_(model, config.expected())
        ghosts = {
            name: {
                spec.name: torch.empty(spec.shape, dtype=spec.dtype, device="meta")
                for spec in input_layout(*given)
            }
            for name, given in config.inputs().items()
        }
        quantize_inputs_(model, config.inputs(), ghosts)
        attention = config.attention_parts()
        if attention is not None:
            layout = attention_layout(*attention)
            empty = {
                spec.name: torch.empty(spec.shape, dtype=spec.dtype, device="meta")
                for spec in layout
            }
            attach_attention_(model, attention[0], noise_level_(model), attention[1], empty)
        keep_text_(model)
        cast(Any, model).config.quantization_config = self.quantization_config

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        del kwargs
        self._pages.release()
        if self._plan is not None:
            self._settle_(model, self._plan)
        for name, layer in model.named_modules():
            if isinstance(layer, QuantizedLayer):
                if any(layer.get_buffer(key).is_meta for key in layer.packed_names):
                    raise UserError(
                        "its packed weight is not in the file.",
                        where=name,
                        remedy="The file is incomplete: copy the folder again.",
                    )
                wide = not self._wide.isdisjoint(name.split("."))
                layer.set_dtype_(torch.float32 if wide else self._dtype)
        for key, buffer in model.named_buffers():
            if buffer.is_meta and key in self.quantization_config.stored():
                raise UserError(
                    "is not in the file.",
                    where=key,
                    remedy="The file is incomplete: copy the folder again.",
                )

    def _settle_(self, model: nn.Module, plan: Plan) -> None:
        """Makes a model that was compressed while it loaded one that was loaded compressed."""
        from vqdq.models.on_the_fly import finish_, settled

        for key in self._pending:
            raise UserError(
                "is not in the file.", where=key, remedy="The file is incomplete: copy it again."
            )
        finish_(model, plan)
        self.quantization_config = settled(plan)
        cast(Any, model).register_to_config(quantization_config=self.quantization_config)
        self.pre_quantized, self._plan = True, None

    def _dequantize(self, model: nn.Module) -> nn.Module:
        for name, layer in list(model.named_modules()):
            if isinstance(layer, QuantizedLayer):
                model.set_submodule(name, unpack(layer))
        detach_attention_(model)
        forget_noise_level_(model)
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
    keep_text_(model)
    _teach()


def register() -> None:
    """Adds the plug-in to diffusers' tables; harmless when repeated."""
    auto.AUTO_QUANTIZER_MAPPING[Method.VQDQ.value] = VqdqQuantizer  # pyright: ignore[reportArgumentType]
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[Method.VQDQ.value] = VqdqConfig  # pyright: ignore[reportArgumentType]


def _teach() -> None:
    """What diffusers' own classes must know about our models; harmless when repeated."""
    from diffusers.loaders.lora_base import LoraBaseMixin
    from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin
    from diffusers.loaders.peft import PeftAdapterMixin
    from diffusers.models.modeling_utils import ModelMixin

    let_casts_pass(ModelMixin)
    refuse_merging(PeftAdapterMixin)
    refuse_merging(LoraBaseMixin)
    show_shapes(FluxLoraLoaderMixin)


def _owner(model: nn.Module, key: str) -> QuantizedLayer | AttentionQuantizer | None:
    path, _, name = key.rpartition(".")
    layer = model.get_submodule(path)
    if isinstance(layer, QuantizedLayer) and name in layer.packed_names:
        return layer
    return layer if isinstance(layer, AttentionQuantizer) else None


register()  # importing this module is the registration; see `vqdq.plugin`
