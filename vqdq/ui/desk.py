"""What the tabs share: the workspace, the model on the desk, its plan, and what a plan will cost.

Everything slow is computed once and kept; nothing here draws. The model's weights are never
loaded: the plan
needs their shapes only.
"""

from __future__ import annotations

import os
import statistics
import threading
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from vqdq.errors import UserError
from vqdq.jobs.requests import CompressRequest
from vqdq.jobs.store import Workspace
from vqdq.models import pipelines
from vqdq.recipe import Component, Plan, Recipe, load_recipe, resolve

ASSETS = Path(__file__).parents[2] / "assets"

# Million weights a second on two cores, until this workspace has its own measurements.
_PACE = {"uniform": 40.0, "additive": 1.2, "trellis": 2.2}
_PACE_OTHER = 0.5
_START_SECONDS = 1.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """A wish in plain words, and the preset that answers it."""

    name: str
    title: str
    words: str


GOALS = (
    Goal(name="trellis-4bit", title="Looks the same", words="Hard to tell from the original"),
    Goal(name="trellis-3bit", title="Balanced", words="Small, and close to the original"),
    Goal(name="trellis-2bit", title="Smallest", words="Changes can be seen"),
    Goal(name="rtn-8bit", title="Fastest", words="Done in a moment, half the size"),
)
DEFAULT_GOAL = "trellis-3bit"


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a plan will cost, and where each guess comes from (the tooltip of its chip)."""

    seconds: float
    seconds_source: str
    memory_bytes: int
    memory_source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """The model on the desk in plain words."""

    title: str
    details: str
    parameters: int


class Desk:
    """One model and one workspace; safe for threads.

    Args:
        workspace: where runs and models live.
        model: "demo", a folder or a hub id.
    """

    def __init__(self, workspace: Workspace, model: str) -> None:
        self.workspace = workspace
        self.model = model
        self._lock = threading.Lock()
        self._plans = lru_cache(maxsize=64)(self._resolve)

    @property
    def is_demo(self) -> bool:
        """True when the embedded model is on the desk, whose world has few words."""
        return self.model == pipelines.DEMO

    @property
    def component(self) -> Component:
        """Shapes of the model's denoiser, read from file headers.

        Raises:
            UserError: not a model that can be opened.
        """
        if isinstance(self._component, UserError):
            raise self._component
        return self._component

    @property
    def fault(self) -> UserError | None:
        """Why the model cannot be opened, or None."""
        return self._component if isinstance(self._component, UserError) else None

    @property
    def stays_here(self) -> bool:
        """True when nothing has to be looked up elsewhere: the demo model or a local folder."""
        local = self.is_demo or Path(self.model).exists()
        return local or os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "True")

    @cached_property
    def _component(self) -> Component | UserError:
        """Read once, a fault too: a page that asks every moment must not look again each time."""
        try:
            return pipelines.component(self.model)
        except UserError as error:
            return error

    @cached_property
    def card(self) -> ModelCard:
        """Name and size of the model."""
        info = pipelines.describe(self.model)
        millions = info.parameters / 1e6
        pixels = (
            " × ".join(str(side) for side in info.resolution) + " px" if info.resolution else ""
        )
        return ModelCard(
            title=f"{info.title} · {millions:.0f} M",
            details=" · ".join(filter(None, (info.pipeline_class, pixels, info.reference))),
            parameters=info.parameters,
        )

    @cached_property
    def presets(self) -> dict[str, Recipe]:
        """Every shipped recipe by its name."""
        folder = pipelines.presets_folder()
        return {path.stem: load_recipe(path, folder) for path in sorted(folder.glob("*.json"))}

    def preset(self, name: str) -> Recipe:
        """Returns a shipped recipe.

        Raises:
            UserError: no such preset; the nearest is named.
        """
        if name in self.presets:
            return self.presets[name]
        return load_recipe(name, pipelines.presets_folder())

    def plan(self, recipe: Recipe) -> Plan:
        """Returns the plan of `recipe` for the model on the desk; kept for the next time.

        Raises:
            UserError: the recipe does not fit the model.
        """
        with self._lock:
            return self._plans(recipe)

    def _resolve(self, recipe: Recipe) -> Plan:
        return resolve(recipe, self.component)

    def estimate(self, plan: Plan) -> Estimate:
        """Returns time and memory of a compression: from this workspace's own runs where there
        are any.
        """
        paces = self._measured_paces()
        seconds, measured = _START_SECONDS, True
        for layer in plan.quantized:
            method = layer.method or ""
            pace = paces.get(method)
            measured = measured and pace is not None
            pace = pace or 1e6 * _PACE.get(method, _PACE_OTHER)
            seconds += layer.storage.num_weights / pace
        largest = max((item.storage.num_weights for item in plan.layers), default=0)
        source = (
            "Estimated from your earlier runs on this computer."
            if measured
            else "Estimated from a computer with two cores; your own runs make it better."
        )
        return Estimate(
            seconds=seconds,
            seconds_source=source,
            memory_bytes=2 * plan.reference_bytes + 24 * largest + 650_000_000,
            memory_source="Estimated: the model in 32 bits, its largest layer, the program.",
        )

    def _measured_paces(self) -> dict[str, float]:
        """Weights a second by method, the median of this workspace's finished compressions."""
        found: dict[str, list[float]] = {}
        for run in self.workspace.runs("compress", limit=30):
            if (
                run.state != "done"
                or not run.result
                or not isinstance(run.request, CompressRequest)
            ):
                continue
            for layer in run.result.get("layers", ()):
                seconds, bits, size = (
                    layer.get(key) for key in ("seconds", "bits_per_weight", "bytes")
                )
                if layer.get("method") and seconds and bits and size:
                    found.setdefault(layer["method"], []).append(8 * size / bits / seconds)
        return {method: statistics.median(paces) for method, paces in found.items()}

    def suggest_name(self, recipe: Recipe) -> str:
        """Returns a free name for a new model: "demo-trellis-3bit", with a number when it is
        taken.
        """
        base = self.model.rstrip("/").rsplit("/", 1)[-1]
        clean = "".join(c if c.isalnum() or c in "._-" else "-" for c in f"{base}-{recipe.name}")
        return self.workspace.free_name(clean.strip("-.")[:56] or "model")

    def variants(self) -> list[tuple[str, str]]:
        """Returns (label, name) of the compressed models that can be compared, newest first."""
        mine = [e for e in self.workspace.models() if e.model in (None, self.model)]
        return [(label(entry.name, entry.bits_per_weight), entry.name) for entry in mine]


def label(name: str, bits: float | None) -> str:
    """Returns a compressed model's name for people: "demo-trellis-3bit · 3.02 bits"."""
    return name if bits is None else f"{name} · {bits:.3g} bits"


def as_fault(error: dict[str, str] | None) -> UserError:
    """Returns the error that a run stored."""
    kept = error or {}
    return UserError(
        kept.get("what") or "It stopped without saying why.",
        where=kept.get("where", ""),
        remedy=kept.get("remedy", ""),
    )
