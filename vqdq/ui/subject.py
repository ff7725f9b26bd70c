"""One model as the tabs need it: its layers, plans and name. Its weights stay on the disk."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from functools import cached_property, lru_cache

from vqdq.errors import UserError
from vqdq.jobs import arithmetic
from vqdq.jobs import plan as planning
from vqdq.jobs.results import ArithmeticResult
from vqdq.models import pipelines
from vqdq.models.fit import fit
from vqdq.models.fit_options import FitOption
from vqdq.models.inventory import Inventory, inventory
from vqdq.models.parts import asked, part_component
from vqdq.models.sources import locate
from vqdq.places import expanded
from vqdq.recipe import Component, Plan, Recipe, resolve
from vqdq.ui.model_cards import Counting


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """A model in plain words."""

    title: str
    details: str
    parameters: int


class Subject:
    """One model; everything slow is computed once and kept. Safe for threads.

    Args:
        model: "demo", a folder, a file or a hub id.
    """

    def __init__(self, model: str) -> None:
        self.model = model
        self._lock = threading.Lock()
        self._suited: Counting | None = None
        self._plans = lru_cache(maxsize=64)(self._resolve)
        self.fitted = lru_cache(maxsize=64)(self._fit)
        self.arithmetic = lru_cache(maxsize=64)(self._expect)

    @property
    def is_demo(self) -> bool:
        """True for the embedded model, whose world has few words."""
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
        """True when nothing has to be looked up elsewhere: the demo, or what is on the disk."""
        file = self.model.partition(".safetensors@")[0]
        local = self.is_demo or os.path.exists(expanded(self.model)) or file != self.model
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
            title=f"{info.title} · {millions:,.0f} M",
            details=" · ".join(filter(None, (info.pipeline_class, pixels, info.reference))),
            parameters=info.parameters,
        )

    @cached_property
    def inventory(self) -> Inventory:
        """What the model is made of.

        Raises:
            UserError: a damaged or unreadable component.
        """
        return inventory(self.model)

    @property
    def suited(self) -> Counting:
        """What fits common cards; the first who asks starts the counting.

        Raises:
            UserError: see `inventory`.
        """
        made_of = self.inventory
        with self._lock:
            if self._suited is None:
                self._suited = Counting(made_of)
            return self._suited

    @cached_property
    def pixels(self) -> int:
        """The longer side of a picture at the model's default size; 0 when it is not known."""
        resolution = pipelines.describe(self.model).resolution
        return max(resolution) if resolution else 0

    @cached_property
    def fingerprint(self) -> str:
        """What tells it from other models, and from itself after a change."""
        return planning.fingerprint(self.model)

    def plan(self, recipe: Recipe) -> Plan:
        """Returns the plan of `recipe` for this model; kept for the next time.

        Raises:
            UserError: the recipe does not fit the model.
        """
        with self._lock:
            return self._plans(recipe)

    def _fit(self, card: int, resolution: int) -> tuple[FitOption, ...]:
        """What is predicted to fit a card of that many bytes; see `vqdq.models.fit`."""
        return fit(self.inventory, card, resolution)

    def _resolve(self, recipe: Recipe) -> Plan:
        component = self.component
        parts = asked(locate(self.model), recipe).values() if recipe.components else ()
        return resolve(recipe, component, [part_component(part)[0] for part in parts])

    def _expect(self, recipe: Recipe) -> ArithmeticResult | None:
        """How the layers should be computed on this machine; None for nothing quantized."""
        return arithmetic.expected(self.plan(recipe))
