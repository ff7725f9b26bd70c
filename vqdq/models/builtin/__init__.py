"""What is known of published families without a file of theirs: their architectures, as configs.

`families.json` says which pipeline a family has and which config each component takes, under the
names that diffusers gives to families of single files; `configs.json` holds the configs: widths,
depths and schedules as published with the models (SD 2: of 2.1 with 768 pixels, which predicts the
velocity; a base model of 2 predicts the noise). What is no number cannot be here: the vocabularies
of tokenizers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vqdq.durable import write_text
from vqdq.tensors import TensorSpec

NAME = "built-in configs"
INDEX = "model_index.json"
HERE = Path(__file__).parent


def configs_folder(family: str, keys: Mapping[str, TensorSpec]) -> Path | None:
    """Returns a folder with the index and the configs of a family, without weights and tokenizers.

    It is written once, beside the imports in the assets of the hub's cache.

    Args:
        family: diffusers' name of it.
        keys: what the checkpoint holds: one family has versions of several sizes.
    """
    from huggingface_hub import cached_assets_path, constants

    files = configs_of(family, keys)
    if not files:
        return None
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:8]
    folder = cached_assets_path(
        "vqdq",
        namespace="builtin",
        subfolder=f"{family}-{digest}",
        assets_dir=constants.HF_ASSETS_CACHE,
    )
    for name, values in files.items():
        if not (folder / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_text(folder / name, json.dumps(values, indent=2) + "\n")
    return folder


def configs_of(family: str, keys: Mapping[str, TensorSpec]) -> dict[str, dict[str, Any]]:
    """Returns the values of each file of such a folder, the index last; none of other families."""
    known = _read("families.json").get(family)
    if known is None:
        return {}
    configs = _read("configs.json")
    files: dict[str, dict[str, Any]] = {}
    index: dict[str, Any] = {"_class_name": known["pipeline"]}
    for name, (library, kind, config) in known["components"].items():
        index[name] = [library, kind]
        if config is None:
            continue
        values = dict(configs[config])
        if library == "transformers":
            values["architectures"] = [kind]
        if kind == "AuraFlowTransformer2DModel":
            values["pos_embed_max_size"] = _positions(keys, values["pos_embed_max_size"])
        files[f"{name}/{'scheduler_config' if name == 'scheduler' else 'config'}.json"] = values
    index |= {name: [None, None] for name in known.get("absent", ())} | known.get("settings", {})
    return files | {INDEX: index}


def _positions(keys: Mapping[str, TensorSpec], usual: int) -> int:
    """Returns how many places AuraFlow's picture has at most: later versions have more."""
    ends = ("positional_encoding", "pos_embed.pos_embed")
    found = (spec.shape for key, spec in keys.items() if key.endswith(ends))
    return next((shape[1] for shape in found if len(shape) > 1), usual)


def _read(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((HERE / name).read_text(encoding="utf-8"))
    return values
