"""What the store knows about the models on the frontier; read again only when it changed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from vqdq.errors import UserError
from vqdq.jobs import frontier
from vqdq.jobs.frontier import Sample
from vqdq.jobs.history import Search
from vqdq.jobs.models import ModelEntry
from vqdq.jobs.run import read_json
from vqdq.jobs.votes import FOLDER, VoteStore
from vqdq.metrics.proportions import Interval
from vqdq.recipe import Recipe
from vqdq.ui.desk import Desk

MOST_RUNS = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """Models, every measured picture, the codec of each model, and what blind tests found."""

    models: tuple[ModelEntry, ...] = ()
    samples: tuple[Sample, ...] = ()
    methods: Mapping[str, str] = field(default_factory=dict[str, str])
    blind: Mapping[str, tuple[Interval, int]] = field(
        default_factory=dict[str, tuple[Interval, int]]
    )


class Shelf:
    """The models on a desk and what is known of them."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._key: object = None
        self._known = Known()
        self._lock = threading.Lock()

    def look(self) -> Known:
        """Returns what is known now."""
        space = self._desk.workspace
        models = tuple(m for m in space.models() if m.model in (None, self._desk.model))
        ended: list[object] = []
        for kind in ("compare", "grid"):
            found, count = space.find(Search(kind=kind, state="done"), limit=1)
            ended += [count, *((run.id, run.finished) for run in found)]
        with self._lock:
            store = self._store()
            opened = () if store is None else tuple(
                digest for digest, _ in store.tests() if store.revealed(digest)
            )  # fmt: skip
            key = (models, *ended, opened)
            if key != self._key:
                runs = [r for k in ("compare", "grid") for r in space.runs(k, limit=MOST_RUNS)]
                self._known = Known(
                    models=models,
                    samples=tuple(frontier.samples(runs)),
                    methods={model.name: method_of(model) for model in models},
                    blind={} if store is None else frontier.blind_rates(store),
                )
                self._key = key
            return self._known

    def _store(self) -> VoteStore | None:
        """The votes, once there are any; a damaged file says so in the Blind tab."""
        if not (self._desk.workspace.path / FOLDER / "votes.sqlite").is_file():
            return None
        try:
            return self._desk.votes
        except UserError:
            return None


def recipe_of(model: ModelEntry) -> Recipe | None:
    """Returns the recipe in a model's folder, or None when there is no readable one."""
    values = read_json(model.path / "recipe.json")
    if values is None:
        return None
    try:
        return Recipe.from_json(values)
    except UserError:
        return None  # of another version


def method_of(model: ModelEntry) -> str:
    """Returns the codec of most rules of a model's recipe; "" where nothing says it."""
    recipe = recipe_of(model)
    counted = Counter(rule.method for rule in (recipe.rules if recipe else ()) if rule.method)
    return counted.most_common(1)[0][0] if counted else ""
