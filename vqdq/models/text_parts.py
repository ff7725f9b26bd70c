"""Text encoders and whatever else transformers opens: built without weights, named by their file.

transformers renames tensors while it loads (`text_model.encoder…` of a CLIP file is `encoder…`
inside) and back when it saves; some it assembles from several. What is asked here is what it will
do, by its own functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)

from vqdq.errors import UserError
from vqdq.tensors import TensorSpec


def text_skeleton(kind: str, config: Mapping[str, Any], *, where: str) -> nn.Module:
    """Returns a model of transformers on the meta device, unquantized.

    Raises:
        UserError: a class that transformers does not know, or settings it does not take.
    """
    found = getattr(transformers, kind, None)
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise UserError(
            f"the class {kind!r} is not part of transformers {transformers.__version__}.",
            where=where,
            remedy="Use a model that transformers itself can load, without code of its own.",
        )
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    try:
        settings = cast(Any, found).config_class.from_dict(plain)
        with torch.device("meta"):
            return found(settings)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"does not describe a {kind}: {error}.", where=where, remedy="Copy the model again."
        ) from error


def module_keys(model: nn.Module, keys: Iterable[str]) -> tuple[dict[str, str], set[str]]:
    """Returns what transformers makes of the keys of a file.

    Returns:
        The key inside the model of each tensor that is read as it is (others are ignored), and the
        keys that go into tensors assembled from several.
    """
    own = model.state_dict()
    rules = get_model_conversion_mapping(cast(Any, model))
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    prefix = cast(Any, model).base_model_prefix
    inside: dict[str, str] = {}
    assembled: set[str] = set()
    for key in keys:
        found, pattern = rename_source_key(key, renamings, converters, prefix, own)
        if found not in own and key in own:
            found, pattern = rename_source_key(key, [], [], prefix, own)
        if found in own and pattern is not None:
            assembled.add(key)
        elif found in own:
            inside[key] = found
    return inside, assembled


def layer_paths(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Returns where an unpacked model has layers, by their names in the file.

    Raises:
        UserError: it has no such layer.
    """
    wanted = list(names)
    inside, _ = module_keys(model, [f"{name}.weight" for name in wanted])
    for name in wanted:
        if f"{name}.weight" not in inside:
            raise UserError(
                "the model has no such layer.",
                where=name,
                remedy="The weights and config.json do not belong together: copy the folder again.",
            )
    return {name: inside[f"{name}.weight"].removesuffix(".weight") for name in wanted}


def file_specs(model: nn.Module) -> dict[str, TensorSpec]:
    """Returns what `save_pretrained` of a model would store, by its keys in the file."""
    tied = cast(Any, model).all_tied_weights_keys
    empty = {
        key: torch.empty_like(tensor, device="meta")
        for key, tensor in model.state_dict().items()
        if key not in tied
    }
    saved = revert_weight_conversion(cast(Any, model), empty)
    return {key: TensorSpec.of(key, tensor) for key, tensor in saved.items()}
