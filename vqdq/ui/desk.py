"""What the tabs share: the workspace, the model on the desk, its plan, and what a plan will cost.

Everything slow is computed once and kept; nothing here draws. The model's weights are never
loaded: the plan
needs their shapes only.
"""

from __future__ import annotations

import os
import statistics
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from vqdq.errors import UserError
from vqdq.jobs import arithmetic, costs
from vqdq.jobs import plan as planning
from vqdq.jobs.requests import CompressRequest
from vqdq.jobs.results import ArithmeticResult
from vqdq.jobs.run import RunRecord
from vqdq.jobs.store import Workspace
from vqdq.jobs.votes import VoteStore
from vqdq.models import pipelines
from vqdq.recipe import Component, Plan, Recipe, load_recipe, resolve

ASSETS = Path(__file__).parents[2] / "assets"


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
    Goal(name="w8a8", title="Fastest", words="Half the size, drawn with whole numbers"),
)
DEFAULT_GOAL = "trellis-3bit"
PLANNING_SECONDS = 2.0  # when nothing is left to measure


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a plan will cost, and where each guess comes from (the tooltip of its chip).

    Attributes:
        stages: seconds of each stage, in their order.
    """

    stages: Mapping[str, float]
    seconds_source: str
    memory_bytes: int
    memory_source: str

    @property
    def seconds(self) -> float:
        """All stages together."""
        return sum(self.stages.values())


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
        self._arithmetic = lru_cache(maxsize=64)(self._expect)

    @cached_property
    def votes(self) -> VoteStore:
        """The votes file of the workspace, opened when a blind test first needs it."""
        return VoteStore.of(self.workspace.path)

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

    @property
    def preset_sizes(self) -> dict[str, int | None]:
        """The exact bytes that each preset gives for the model; None where it does not fit."""
        sizes: dict[str, int | None] = {}
        for name, recipe in self.presets.items():
            try:
                sizes[name] = self.plan(recipe).predicted_bytes
            except UserError:
                sizes[name] = None  # its button shows a dash; pressing it says why
        return sizes

    @cached_property
    def sensitivity_file(self) -> Path:
        """Where the measured sensitivity of this model's layers is kept."""
        return self.workspace.path / f"sensitivity-{planning.fingerprint(self.model)[:16]}.json"

    def measuring_seconds(self, plan: Plan) -> float:
        """Estimated seconds of a plan for a target; little once the layers were measured."""
        if self.sensitivity_file.is_file():
            return PLANNING_SECONDS
        return costs.measuring_seconds(plan, self.pixels)

    def plan(self, recipe: Recipe) -> Plan:
        """Returns the plan of `recipe` for the model on the desk; kept for the next time.

        Raises:
            UserError: the recipe does not fit the model.
        """
        with self._lock:
            return self._plans(recipe)

    def _resolve(self, recipe: Recipe) -> Plan:
        return resolve(recipe, self.component)

    def arithmetic(self, recipe: Recipe) -> ArithmeticResult | None:
        """Returns how the layers should be computed on this machine; None for nothing quantized."""
        return self._arithmetic(recipe)

    def _expect(self, recipe: Recipe) -> ArithmeticResult | None:
        return arithmetic.expected(self.plan(recipe))

    @cached_property
    def pixels(self) -> int:
        """The longer side of a picture at the model's default size; 0 when it is not known."""
        resolution = pipelines.describe(self.model).resolution
        return max(resolution) if resolution else 0

    def estimate(self, plan: Plan) -> Estimate:
        """Returns time and memory of a compression: from this workspace's own runs where there
        are any.
        """
        history = [run for run in self.workspace.runs("compress", limit=30) if run.state == "done"]
        paces = _measured_paces(history)
        stages = costs.stages(plan, self.pixels, paces)
        methods = {layer.method or "" for layer in plan.quantized}
        largest = max((item.storage.num_weights for item in plan.layers), default=0)
        widest = max((item.layer.shape.in_features for item in plan.quantized), default=0)
        calibration = plan.recipe.calibration
        took = {name: seconds * self._slower(history, name) for name, seconds in stages.items()}
        statistics_bytes = 0
        if calibration is not None:
            held = 4 * sum(item.layer.shape.in_features**2 for item in plan.quantized)
            statistics_bytes = min(held, round(calibration.memory_gb * 1e9)) + 16 * widest**2
        return Estimate(
            stages=took,
            seconds_source="Estimated from your earlier runs on this computer."
            if methods <= paces.keys()
            else "Estimated from a computer with two cores; your own runs make it better.",
            memory_bytes=2 * plan.reference_bytes + 24 * largest + 650_000_000 + statistics_bytes,
            memory_source="Estimated: the model in 32 bits, its largest layer, the program.",
        )

    def _slower(self, history: Sequence[RunRecord], stage: str) -> float:
        """How many times longer than estimated this stage took here: the median of earlier runs.

        Encoding has its own measure, weights a second.
        """
        if stage == "encode":
            return 1.0
        found: list[float] = []
        for run in history:
            request = run.request
            if not isinstance(request, CompressRequest) or request.model != self.model:
                continue
            expected = self._expected(request.recipe).get(stage)
            spent = _stage_seconds(run.folder).get(stage)
            if expected and spent:
                found.append(spent / expected)
        return statistics.median(found) if found else 1.0

    def _expected(self, recipe: Recipe) -> dict[str, float]:
        if recipe.calibration is None and recipe.finetune is None and recipe.ranges is None:
            return {}
        try:
            return costs.stages(self.plan(recipe), self.pixels)
        except UserError:
            return {}  # of another version of the model

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


def _measured_paces(history: Sequence[RunRecord]) -> dict[str, float]:
    """Weights a second by method, the median of finished compressions without calibration."""
    found: dict[str, list[float]] = {}
    for run in history:
        request = run.request
        if not isinstance(request, CompressRequest) or request.recipe.calibration is not None:
            continue
        for layer in (run.result or {}).get("layers", ()):
            seconds, bits, size = (
                layer.get(key) for key in ("seconds", "bits_per_weight", "bytes")
            )
            if layer.get("method") and seconds and bits and size:
                found.setdefault(layer["method"], []).append(8 * size / bits / seconds)
    return {method: statistics.median(paces) for method, paces in found.items()}


@lru_cache(maxsize=64)
def _stage_seconds(folder: Path) -> dict[str, float]:
    """Of a finished run, so it is read once."""
    return costs.stage_seconds(folder)
