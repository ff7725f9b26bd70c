"""What the tabs share: the workspace, the model on the desk, its plan, and what a plan will cost.

Everything slow is computed once and kept; nothing here draws. The model's weights are never
loaded: the plan
needs their shapes only (`subject`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vqdq.errors import UserError
from vqdq.jobs import costs
from vqdq.jobs.forecast import Forecast, forecast
from vqdq.jobs.recents import Recents
from vqdq.jobs.results import ArithmeticResult
from vqdq.jobs.run import RunRecord
from vqdq.jobs.store import Workspace
from vqdq.jobs.votes import VoteStore
from vqdq.models import pipelines
from vqdq.models.sources import locate
from vqdq.params import nearest
from vqdq.progress import Report, silent
from vqdq.recipe import Component, Plan, Recipe, load_recipe
from vqdq.ui.live import page_key
from vqdq.ui.subject import ModelCard, Subject

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
PAGES = 512  # of which the chosen model is remembered
LOOKED_THROUGH = 60  # runs, for those of one model
SUBJECTS = 8  # models whose layers and plans are kept
PLANNING_SECONDS = 2.0  # when nothing is left to measure


_SOURCES = {
    "measured": "Estimated from what was measured on this computer.",
    "runs": "Estimated from your earlier runs on this computer.",
    "constants": "Estimated from a computer with two cores; your own runs make it better.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a plan will cost, and where each guess comes from (the tooltip of its chip)."""

    forecast: Forecast

    @property
    def stages(self) -> Mapping[str, float]:
        """Seconds of each stage, in their order."""
        return self.forecast["stages"]

    @property
    def seconds(self) -> float:
        """All stages together."""
        return sum(self.stages.values())

    @property
    def seconds_source(self) -> str:
        """Where the seconds come from."""
        return _SOURCES[self.forecast["source"]]

    @property
    def memory_bytes(self) -> int:
        """At most, of the process that does the work."""
        return self.forecast["memory_bytes"]

    @property
    def memory_source(self) -> str:
        """Where the memory comes from."""
        return "Estimated: the program as it is now, and the work on the largest layer."


class Desk:
    """A workspace, and the model that each open page has on the desk; safe for threads.

    Pages are told apart by Gradio's session, so that a model that is chosen on one of them leaves
    the others as they are; outside of a page's event it is the model of the start.

    Args:
        workspace: where runs and models live.
        model: "demo", a folder, a file or a hub id: what a page has that has chosen nothing.
    """

    def __init__(self, workspace: Workspace, model: str) -> None:
        self.workspace = workspace
        self.first = model
        self.recents = Recents(workspace.path)
        self._lock = threading.Lock()
        self._chosen: OrderedDict[str, str] = OrderedDict()
        self._subjects: OrderedDict[str, Subject] = OrderedDict()

    @property
    def model(self) -> str:
        """What the page that asks has on the desk."""
        with self._lock:
            return self._chosen.get(page_key(), self.first)

    def choose(self, model: str) -> None:
        """Puts another model on the desk of the page that asks, and only there.

        Raises:
            UserError: it is not among those that may be opened here.
        """
        self.workspace.admit(model)
        with self._lock:
            self._chosen[page_key()] = model
            self._chosen.move_to_end(page_key())
            while len(self._chosen) > PAGES:
                self._chosen.popitem(last=False)

    def opened(self, model: str, *, report: Report = silent) -> Subject:
        """Returns a model after looking at it anew: files, headers, layers; remembered as recent.

        Args:
            report: stage "download" of a hub id that is not in the cache; may raise `Cancelled`.

        Raises:
            UserError: it cannot be found, read or trusted.
        """
        self.workspace.admit(model)
        source = locate(model, report=report)
        subject = Subject(model)
        found = subject.inventory
        if subject.fault is not None:
            raise subject.fault
        with self._lock:
            self._keep(subject)
        self.recents.add(
            model=model,
            title=found.title,
            folder=str(source.file or source.folder),
            parameters=subject.card.parameters,
        )
        return subject

    @property
    def subject(self) -> Subject:
        """The model on the desk."""
        model = self.model
        with self._lock:
            found = self._subjects.get(model)
            if found is None:
                found = Subject(model)
            self._keep(found)
        return found

    def _keep(self, subject: Subject) -> None:
        self._subjects[subject.model] = subject
        self._subjects.move_to_end(subject.model)
        while len(self._subjects) > SUBJECTS:
            self._subjects.popitem(last=False)

    @cached_property
    def votes(self) -> VoteStore:
        """The votes file of the workspace, opened when a blind test first needs it."""
        return VoteStore.of(self.workspace.path)

    @property
    def is_demo(self) -> bool:
        """True when the embedded model is on the desk, whose world has few words."""
        return self.subject.is_demo

    @property
    def component(self) -> Component:
        """Shapes of the model's denoiser, read from file headers.

        Raises:
            UserError: not a model that can be opened.
        """
        return self.subject.component

    @property
    def fault(self) -> UserError | None:
        """Why the model cannot be opened, or None."""
        return self.subject.fault

    @property
    def stays_here(self) -> bool:
        """True when nothing has to be looked up elsewhere."""
        return self.subject.stays_here

    @property
    def card(self) -> ModelCard:
        """Name and size of the model."""
        return self.subject.card

    @property
    def pixels(self) -> int:
        """The longer side of a picture at the model's default size; 0 when it is not known."""
        return self.subject.pixels

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
        if name not in self.presets:  # a name, never a path: it may come from anywhere
            raise UserError(
                f'no recipe "{name[:60]}".',
                where="recipe",
                remedy=nearest(name[:60], tuple(self.presets), "preset"),
            )
        return self.presets[name]

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

    @property
    def sensitivity_file(self) -> Path:
        """Where the measured sensitivity of this model's layers is kept."""
        return self.workspace.path / f"sensitivity-{self.subject.fingerprint[:16]}.json"

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
        return self.subject.plan(recipe)

    def arithmetic(self, recipe: Recipe) -> ArithmeticResult | None:
        """Returns how the layers should be computed on this machine; None for nothing quantized."""
        return self.subject.arithmetic(recipe)

    def estimate(self, plan: Plan) -> Estimate:
        """Returns time and memory of a compression: from what was measured on this computer, and
        from this workspace's own runs, where there are any.
        """
        return Estimate(forecast=self.forecast(plan))

    def forecast(self, plan: Plan) -> Forecast:
        """Returns what a compression of the model on the desk is expected to take."""
        subject = self.subject
        try:
            parts = subject.inventory.parts
        except UserError:
            parts = ()  # a component beside the denoiser is damaged: said where it is needed
        return forecast(
            self.workspace,
            plan,
            model=subject.model,
            pixels=subject.pixels,
            parameters=sum(part.census.parameters for part in parts),
            copied_bytes=sum(part.bytes for part in parts[1:]),
            resolved=subject.plan,
        )

    def whole_bytes(self, plan: Plan) -> tuple[int, int] | None:
        """Returns what all weight files of the model take, in 16 bits where the plan packs and
        after it; None when the denoiser is all there is, or a component cannot be read.
        """
        try:
            others = self.subject.inventory.parts[1:]
        except UserError:
            return None
        planned = (plan, *plan.others)
        names = {each.component.name for each in planned}
        kept = sum(part.bytes for part in others if part.name not in names)
        if not others:
            return None
        return sum(each.reference_bytes for each in planned) + kept, plan.total_bytes + kept

    def suggest_name(self, recipe: Recipe) -> str:
        """Returns a free name for a new model: "demo-trellis-3bit", with a number when it is
        taken.
        """
        base = self.model.rstrip("/").rsplit("/", 1)[-1]
        clean = "".join(c if c.isalnum() or c in "._-" else "-" for c in f"{base}-{recipe.name}")
        return self.workspace.free_name(clean.strip("-.")[:56] or "model")

    def runs(self, kind: str, limit: int) -> tuple[RunRecord, ...]:
        """Returns the newest runs of a kind that were about the model on the desk."""
        model = self.model
        found = self.workspace.runs(kind, max(limit, LOOKED_THROUGH))
        mine = [run for run in found if getattr(run.request, "model", model) == model]
        return tuple(mine[:limit])

    def ahead(self, run: RunRecord | None) -> int:
        """Returns how many runs have to end before a queued one begins; 0 for any other."""
        if run is None or run.state != "queued":
            return 0
        return self.workspace.ahead(run.id)

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
