"""The last pipelines stay loaded, so that a second picture starts at once; the oldest leave
first.
"""

from __future__ import annotations

import dataclasses
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import psutil
import torch

from vqdq.jobs import inputs, placing
from vqdq.jobs.run import read_json
from vqdq.layers.residency import RESIDENT, ModeSetting
from vqdq.progress import Event, Report, silent
from vqdq.recipe import Recipe

SHARE_OF_MEMORY = 0.4
MAX_MODELS = 6


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Warm:
    """A loaded pipeline and what is known about its model.

    Attributes:
        reference: as the request names it; `label`: for people.
        pipeline: a diffusers pipeline, ready to draw.
        load_seconds: how long loading took; 0 when it was already warm.
        facts: the content of `vqdq.json` of a compressed model, else empty.
        file_bytes: size of the denoiser's weights as the folder stores them, or as 16 bits need.
        activations: what its recipe does to activations and attention, in words.
        recipe: of a compressed model, as JSON.
    """

    reference: str
    label: str
    pipeline: Any
    load_seconds: float
    tensor_bytes: int
    facts: dict[str, Any]
    file_bytes: int
    is_demo: bool
    activations: str = ""
    recipe: dict[str, Any] | None = None


def unchanged(reference: str) -> str:
    """Returns the reference itself: without a workspace there are no names to look up."""
    return reference


class WarmPipelines:
    """Least recently used pipelines up to a share of the machine's memory.

    Args:
        locate: from a model's name to "demo", a folder or a hub id.
        limit_bytes: of all pipelines together; the one in use always stays.
    """

    def __init__(
        self, locate: Callable[[str], str] = unchanged, limit_bytes: int | None = None
    ) -> None:
        self._locate = locate
        total = int(psutil.virtual_memory().total)
        self._limit = int(total * SHARE_OF_MEMORY) if limit_bytes is None else limit_bytes
        self._kept: OrderedDict[tuple[str, int, torch.dtype], Warm] = OrderedDict()

    def get(
        self,
        reference: str,
        *,
        setting: ModeSetting = RESIDENT,
        device: str | None = "cpu",
        report: Report = silent,
    ) -> Warm:
        """Returns the pipeline of a model, loaded if it is not warm.

        Args:
            setting: how it keeps decoded weights, until it is asked for again.
            device: "cpu" or "cuda", where it lies until then, and computes in
                `placing.computing_dtype`; one pipeline at a time is on a card. None leaves it
                where it is, in 32 bits.

        Raises:
            UserError: the model cannot be opened, not run in that mode, or does not lie on the
                card; there is no card.
        """
        placing.require_device(device or "cpu")
        from vqdq.models import pipelines  # heavy: diffusers

        place = self._locate(reference)
        component = pipelines.describe(place).component if device == "cuda" else ""
        dtype = placing.computing_dtype(device or "cpu", component)
        key = (place, _changed(place), dtype)
        if key in self._kept:
            self._kept.move_to_end(key)
            kept = self._kept[key]
            if device == "cpu":  # first, or packed weights would come to the card once more
                self._place_(kept, device)
            _set_mode_(kept.pipeline, setting)
            if device == "cuda":
                self._place_(kept, device)
            return _in_mode(_named(kept, reference, 0.0), setting)
        report(Event(stage="load", message=reference))
        info = pipelines.describe(place)
        self._make_room(dtype.itemsize * info.parameters)
        start = time.perf_counter()
        pipeline = pipelines.load(place, dtype=dtype, report=report)
        _set_mode_(pipeline, setting)
        seconds = time.perf_counter() - start
        folder = Path(place)
        facts = (read_json(folder / "vqdq.json") or {}) if folder.is_dir() else {}
        entry = Warm(
            reference=reference,
            label=_label(reference, facts, info.title),
            pipeline=pipeline,
            load_seconds=seconds,
            # a quantized layer decodes at its first use
            tensor_bytes=max(tensor_bytes(pipeline), dtype.itemsize * info.parameters),
            facts=facts,
            file_bytes=int(facts.get("weight_bytes", info.bytes)),
            is_demo="demo" in (place, facts.get("base_model")),
            activations=_activations(folder) if facts else "",
            recipe=read_json(folder / "recipe.json") if facts else None,
        )
        self._kept[key] = entry
        self._make_room(0)
        if device is not None:
            self._place_(entry, device)
        return _in_mode(entry, setting)

    def locate(self, reference: str) -> str:
        """Returns "demo", a folder or a hub id for a model's name."""
        return self._locate(reference)

    def drop(self) -> None:
        """Lets all pipelines go."""
        self._kept.clear()

    def _place_(self, entry: Warm, device: str) -> None:
        for other in self._kept.values() if device == "cuda" else ():
            if other.pipeline is not entry.pipeline:
                placing.place_(other.pipeline, "cpu", other.label)
        placing.place_(entry.pipeline, device, entry.label)

    def _make_room(self, needed: int) -> None:
        while self._kept and (
            sum(entry.tensor_bytes for entry in self._kept.values()) + needed > self._limit
            or len(self._kept) > MAX_MODELS - (needed > 0)
        ):
            if needed == 0 and len(self._kept) == 1:
                return
            self._kept.popitem(last=False)


def _changed(place: str) -> int:
    """A number that changes when a folder's model is replaced."""
    index = (demo() if place == "demo" else Path(place)) / "model_index.json"
    return index.stat().st_mtime_ns if index.is_file() else 0


def demo() -> Path:
    """Returns the folder of the embedded model."""
    from vqdq.models import sources

    return sources.demo_folder()


def _named(entry: Warm, reference: str, load_seconds: float) -> Warm:
    return dataclasses.replace(entry, reference=reference, load_seconds=load_seconds)


def _set_mode_(pipeline: Any, setting: ModeSetting) -> None:
    from vqdq.models import modes  # heavy: diffusers

    modes.set_mode_(pipeline, setting.mode, setting.cache_bytes, offload=setting.offload)


def _in_mode(entry: Warm, setting: ModeSetting) -> Warm:
    """Returns the entry with the bytes that its tensors and decoded weights take in a mode."""
    from vqdq.models import modes

    if setting.mode == "resident":
        return entry
    held = tensor_bytes(entry.pipeline) + modes.kept_bytes(entry.pipeline)
    return dataclasses.replace(entry, tensor_bytes=held)


def _activations(folder: Path) -> str:
    """What the recipe in a compressed folder does to the layers' inputs, in words."""
    recipe = read_json(folder / "recipe.json")
    return "" if recipe is None else inputs.in_words(Recipe.from_json(recipe))


def _label(reference: str, facts: dict[str, Any], title: str) -> str:
    if not facts:
        return "FP16"
    bits = facts.get("bits_per_weight")
    name = str(facts.get("recipe") or Path(reference).name or title)
    return f"{name} · {bits:.3g} bits" if isinstance(bits, float) else name


def tensor_bytes(pipeline: Any) -> int:
    """Returns the bytes of all weights of a pipeline, each storage counted once."""
    seen: dict[int, int] = {}
    for part in cast(dict[str, Any], pipeline.components).values():
        if isinstance(part, torch.nn.Module):
            for tensor in (*part.parameters(), *part.buffers()):
                storage = tensor.untyped_storage()
                seen[storage.data_ptr()] = storage.nbytes()
    return sum(seen.values())
