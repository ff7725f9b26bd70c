"""Which files make a component: texts and one set of safetensors, nothing that runs.

A folder often holds the same weights several times (pickles, ONNX, other precisions); one set is
enough: the plain one, else the fp16 variant.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path

from vqdq.errors import UserError
from vqdq.models.parsing import parse_object

_TEXTS = (".json", ".txt", ".model", ".jinja", ".vocab", ".spm")
_ROOT = re.compile(r"[\w-]+\.json|README\.md|LICEN[CS]E(\.\w+)?|NOTICE(\.\w+)?|SHA256SUMS", re.I)
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx")
# model.safetensors, model.fp16.safetensors, and shards with the variant before or after the number
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:\.(?P<a>\w+))?(?:-\d+-of-\d+)?(?:\.(?P<b>\w+))?"
    r"\.safetensors"
)
_VARIANTS = ("", "fp16")


def wanted_files(
    paths: Iterable[str], index: Path, weights_of: Collection[str] | None, model: str
) -> list[str]:
    """Returns the paths to fetch, sorted.

    Args:
        paths: every file of the repository.
        index: its `model_index.json`.
        weights_of: components whose weights are needed; None means all.
        model: named in errors.

    Raises:
        UserError: the index cannot be read, or a component has pickled weights only.
    """
    found: list[str] = []
    inside: dict[str, list[str]] = {name: [] for name in _components(index, model)}
    for path in sorted(paths):
        folder, _, name = path.rpartition("/")
        if folder == "" and _ROOT.fullmatch(name):
            found.append(path)
        elif folder in inside:
            inside[folder].append(name)
    for folder, names in inside.items():
        found += [f"{folder}/{name}" for name in text_files(names)]
        if weights_of is None or folder in weights_of:
            found += [f"{folder}/{name}" for name in weight_files(names, folder, model)]
    return sorted(found)


def text_files(names: Iterable[str]) -> list[str]:
    """Returns the configs, vocabularies and indices among the files of a component."""
    return [
        name
        for name in names
        if name.endswith(_TEXTS) and not re.search(r"\.(bin|msgpack|h5)\.index\.", name)
    ]


def _components(index: Path, model: str) -> list[str]:
    entries = parse_object(index.read_bytes(), model, remedy="Use another revision.")
    return [key for key, value in entries.items() if isinstance(value, list) and "/" not in key]


def weight_files(names: Iterable[str], component: str, model: str) -> list[str]:
    """Returns one set of safetensors among the files of a component: plain, else fp16, else none.

    Raises:
        UserError: there are only pickles.
    """
    names = list(names)
    variants: dict[str, list[str]] = {}
    for name in names:
        if (match := _WEIGHTS.fullmatch(name)) is not None:
            variants.setdefault(match["a"] or match["b"] or "", []).append(name)
    for variant in _VARIANTS:
        if variant in variants:
            return variants[variant]
    if any(name.endswith(_PICKLES) for name in names):
        raise UserError(
            f"{component} has only pickled weights, which can run any program when opened.",
            where=model,
            remedy="Use a version with safetensors weights, or convert it where you trust it "
            "(diffusers' save_pretrained writes safetensors).",
        )
    return []
