"""What a compressed component's `config.json` says: which layers, which methods, which tensors."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import Any, cast

import torch
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from transformers.utils.quantization_config import QuantizationConfigMixin as TextConfigMixin

from vqdq import activations, codecs
from vqdq.activations.attention import AttentionParams
from vqdq.activations.base import ActivationQuantizer, Site
from vqdq.codecs.base import Packed, WeightShape
from vqdq.errors import UserError
from vqdq.layers.attention import attention_layout
from vqdq.layers.inputs import input_layout
from vqdq.recipe import Recipe, load_recipe
from vqdq.tensors import TensorSpec

FORMAT_VERSION = 3  # 2: trellis columns in sequences of 256 rows; 3: inputs may be quantized
_READ = (2, 3)
_MOST = 2**31 - 1
_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)
_NEWER = "Install the version of vqdq that wrote the folder, or compress the model again."


class Method(StrEnum):
    """The name in `quant_method`; an enum because diffusers reads `.value`."""

    VQDQ = "vqdq"


class VqdqConfig(QuantizationConfigMixin, TextConfigMixin):  # pyright: ignore[reportIncompatibleVariableOverride]
    """What `config.json` says about a compressed component, of diffusers or of transformers.

    Attributes:
        recipe: the recipe's JSON values.
        codecs: every method used, with all its settings.
        layers: layer name -> {codec: index into `codecs`, shape: [out, in], taps}, and where the
            input is quantized {activation: index into `activations`, positions}, or {spared: true}
            where the layer is too small for integers to be faster.
        activations: every activation quantizer used, with all its settings.
        attention: settings of the attention quantizer and where q, k and v are rounded
            {params, sites: name -> [channels, positions]}, or None.
    """

    def __init__(
        self,
        *,
        recipe: Mapping[str, Any],
        codecs: list[dict[str, Any]],
        layers: Mapping[str, dict[str, Any]],
        activations: list[dict[str, Any]] | None = None,
        attention: Mapping[str, Any] | None = None,
        version: int = FORMAT_VERSION,
        quant_method: str = Method.VQDQ.value,
        **unknown: Any,
    ) -> None:
        if unknown:
            raise UserError(
                f'unknown setting "{next(iter(unknown))}" of quantization_config.',
                where="config.json",
                remedy=_NEWER,
            )
        self.quant_method = cast(Any, Method(quant_method))
        self.version = version
        self.recipe = dict(recipe)
        self.codecs = codecs
        self.layers = dict(layers)
        self.activations = activations or []
        self.attention = None if attention is None else dict(attention)
        if version not in _READ:
            raise UserError(
                f"format version {version!r} is not known.", where="config.json", remedy=_NEWER
            )

    @classmethod
    def of(cls, recipe: Recipe | str | Path) -> VqdqConfig:
        """Returns the configuration that compresses a component while it is loaded.

        `from_pretrained(…, quantization_config=VqdqConfig.of("trellis-3bit"))`, or for each
        component of a pipeline in `PipelineQuantizationConfig(quant_mapping={…})`. The recipe's own
        rules are used, whichever component it is.

        Args:
            recipe: a recipe, a preset by its name, or a JSON file.

        Raises:
            UserError: no such recipe, or a fault inside it.
        """
        from vqdq.models.sources import presets_folder

        ready = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, presets_folder())
        return cls(recipe=ready.to_json(), codecs=[], layers={})

    @classmethod
    def read(cls, values: object) -> VqdqConfig:
        """Returns the config in JSON values that come from a file.

        Raises:
            UserError: they are not what this program writes.
        """
        kinds = {"recipe": dict, "codecs": list, "layers": dict}
        more = {"activations": list, "attention": dict, "version": int, "quant_method": str}
        given = cast(dict[str, Any], values) if isinstance(values, dict) else {}
        wrong = [key for key, kind in kinds.items() if not isinstance(given.get(key), kind)]
        for key, value in given.items():
            kind = more.get(key)
            if key not in kinds and (kind is None or not isinstance(value, kind | NoneType)):
                wrong.append(key)
        if given.get("quant_method", Method.VQDQ.value) != Method.VQDQ.value:
            wrong.append("quant_method")
        if wrong:
            raise UserError(
                f"its quantization_config is malformed ({', '.join(map(str, wrong))[:200]}).",
                where="config.json",
                remedy=_NEWER,
            )
        return cls(**{key: value for key, value in given.items() if value is not None})

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
                codec = built[_whole(entry["codec"], 0, len(built) - 1)]
                rows, columns = (_whole(size, 1, _MOST) for size in entry["shape"])
                taps = _whole(entry["taps"], 1, columns)
                shape = WeightShape(out_features=rows, in_features=columns, taps=taps)
                layout = codec.layout(shape)
            except _MALFORMED as error:
                raise UserError(
                    "its entry in config.json is malformed.", where=name, remedy=_NEWER
                ) from error
            found[name] = Packed(
                codec=codec.name,
                params=codec.params,
                shape=shape,
                tensors={
                    spec.name: torch.empty(spec.shape, dtype=spec.dtype, device="meta")
                    for spec in layout
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
        for name, entry in cast(dict[str, Any], self.layers).items():
            if not isinstance(entry, dict) or entry.get("activation") is None:
                continue  # what is no entry is said by `expected`
            try:
                taps = _whole(entry["taps"], 1, _MOST)
                channels = _whole(entry["shape"][1], 1, _MOST) // taps
                positions = _whole(entry["positions"], 0, _MOST)
                site = Site(channels=channels, positions=positions, taps=taps)
                quantizer = built[_whole(entry["activation"], 0, len(built) - 1)]
                input_layout(quantizer, site)
                found[name] = (quantizer, site)
            except _MALFORMED as error:
                raise UserError(
                    "its entry in config.json is malformed.", where=name, remedy=_NEWER
                ) from error
        return found

    def attention_parts(self) -> tuple[AttentionParams, dict[str, Site]] | None:
        """Returns the settings of quantized attention and its sites, or None.

        Raises:
            UserError: an unknown setting or a malformed entry.
        """
        if self.attention is None:
            return None
        try:
            params = AttentionParams.from_json(self.attention["params"], where="attention")
            sites = {
                name: Site(
                    channels=_whole(channels, 1, _MOST), positions=_whole(positions, 0, _MOST)
                )
                for name, (channels, positions) in self.attention["sites"].items()
            }
        except _MALFORMED as error:
            raise UserError(
                "its entry in config.json is malformed.", where="attention", remedy=_NEWER
            ) from error
        return params, sites

    def stored(self) -> dict[str, TensorSpec]:
        """Returns every tensor that no cast may touch, by its key in the file."""
        inputs, found = self.inputs(), dict[str, TensorSpec]()
        for name, packed in self.expected().items():
            own = (
                *packed.storage.tensors,
                *(input_layout(*inputs[name]) if name in inputs else ()),
            )
            found |= {f"{name}.{spec.name}": spec for spec in own}
        attention = self.attention_parts()
        if attention is not None:
            found |= {spec.name: spec for spec in attention_layout(*attention)}
        return found


def _whole(value: object, low: int, high: int) -> int:
    """Returns a whole number of a file; raises `ValueError` for anything else."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(value)
    return value


def _codec(entry: Mapping[str, Any]) -> codecs.Codec[Any]:
    try:
        kind = codecs.get(entry["method"])
        params = kind.settings.from_json(entry["params"], where=entry["method"])
    except _MALFORMED as error:
        raise UserError("the table of methods is malformed.", where="config.json") from error
    except UserError as error:
        raise UserError(error.what, where=error.where, remedy=_NEWER) from error
    return kind(params)  # a peer that is absent says how to install it


def _quantizer(entry: Mapping[str, Any]) -> ActivationQuantizer[Any]:
    try:
        kind = activations.get(entry["method"])
        params = kind.settings.from_json(entry["params"], where=entry["method"])
    except _MALFORMED as error:
        raise UserError("the table of activations is malformed.", where="config.json") from error
    except UserError as error:
        raise UserError(error.what, where=error.where, remedy=_NEWER) from error
    return kind(params)
