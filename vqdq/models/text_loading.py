"""A text encoder compressed while transformers loads it.

transformers puts the dense weights into the model first; each layer is then encoded from the file
again and takes the place of the dense one, so what was stored decides the bytes and not the dtype
that it was loaded in. What is kept is rounded to 16 bits, as in a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from vqdq.errors import UserError
from vqdq.models.checkpoint import half
from vqdq.models.on_the_fly import packed_layer, planned, settled
from vqdq.models.packed_config import VqdqConfig
from vqdq.models.parts import read_in
from vqdq.models.weights import open_weights


class TextLoading:
    """What is known of a text encoder before its weights are loaded."""

    def __init__(self, model: nn.Module, config: VqdqConfig, paths: Sequence[Path] | None) -> None:
        """Plans what becomes of `model`; reads headers only.

        Args:
            model: without weights; paths: of the files that they will come from.

        Raises:
            UserError: not from safetensors files, or a fault of the recipe or of a file.
        """
        kind = type(model).__name__
        if paths is None or any(path.suffix != ".safetensors" for path in paths):
            raise UserError(
                "is compressed while it loads from safetensors files only.",
                where=kind,
                remedy="Save the model with save_pretrained and load it from there.",
            )
        self._files = {key: file for file in map(open_weights, paths) for key in file.tensors}
        specs = {key: file.tensors[key] for key, file in self._files.items()}
        self._inner = read_in(kind, "transformers", model, specs, kind)
        self._plan = planned(config, self._inner.component)

    def finish_(self, model: nn.Module) -> tuple[VqdqConfig, dict[str, str]]:
        """Packs the layers of the loaded model.

        Returns:
            What its `config.json` says from now on, and where the model has each packed layer, by
            its name in the file.
        """
        paths = self._inner.paths()
        names = {item.layer.name: paths[item.layer.name] for item in self._plan.quantized}
        for item in self._plan.quantized:
            path, key = names[item.layer.name], f"{item.layer.name}.weight"
            layer = model.get_submodule(path)
            device = layer.get_parameter("weight").device
            weight = self._files[key].read(key)
            seed = self._plan.recipe.seed
            model.set_submodule(path, packed_layer(layer, weight, item, seed, device))
        packed = {f"{path}.weight" for path in names.values()}
        state = model.state_dict()
        with torch.no_grad():
            for own, key in self._inner.keys.items():
                if own not in packed:
                    state[own].copy_(half(self._files[key].read(key), key))
        return settled(self._plan), names
