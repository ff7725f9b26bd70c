"""A sweep from its file to its tables: plan it, run it on an engine, write down what came out."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vqdq.errors import UserError
from vqdq.jobs import sweep_table
from vqdq.jobs.grid_cells import Picture
from vqdq.jobs.lock import Lock
from vqdq.jobs.sweep_addresses import Addresses
from vqdq.jobs.sweep_file import Sweep
from vqdq.jobs.sweep_plan import Planner, SweepPlan
from vqdq.jobs.sweep_store import Store
from vqdq.jobs.sweep_table import Found, Summary
from vqdq.jobs.sweep_units import Engine

FILE = "sweep.json"
ASKED = "asked.json"
_DRIVER = "driver"


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """The tables of a sweep as they are now, and the names of the files that hold them."""

    found: list[Found]
    rows: list[Summary]
    values: dict[str, Any]
    files: tuple[str, ...]


def planned(
    pictures: Sequence[Picture],
    engine: Engine,
    store: Store,
    *,
    metrics: tuple[str, ...],
    threads: int = 1,
    device: str = "cpu",
    gpu_share: float = 0.0,
) -> SweepPlan:
    """Returns the plan of these pictures on an engine's workers, less what the store holds.

    Raises:
        UserError: a model cannot be opened, or the engine has no worker.
    """
    environment = engine.environment(device, threads)
    planner = Planner(
        addresses=Addresses(environment=environment, metrics=metrics),
        known=store.known(),
        device=device,
        gpu_share=gpu_share,
        workers=engine.slots(),
    )
    return planner.plan(pictures)


def gpu_share(sweep: Sweep) -> float:
    """Returns which part of a card a unit takes: as many as fit share it evenly; 0 on the CPU.

    ESTIMATED from the largest model: its weights in 32 bits, as they are computed in, and as much
    again for what lives between them.

    Raises:
        UserError: a model that does not fit into `card_gb`.
    """
    if sweep.device == "cpu":
        return 0.0
    from vqdq.models import pipelines  # heavy: diffusers

    need = max(2 * 4 * pipelines.describe(model).parameters for model in sweep.models) / 1e9
    if need > sweep.card_gb:
        raise UserError(
            f"the largest model takes about {need:.1f} GB while it draws; a card has"
            f" {sweep.card_gb:g} GB.",
            where="card_gb",
            remedy='Use larger cards, or "device": "cpu".',
        )
    return 1 / max(1, int(sweep.card_gb / need))


def write_tables(store: Store, sweep: Sweep, plan: SweepPlan) -> Written:
    """Returns what there is so far, after writing it as CSV and JSON into the store's folder."""
    found = sweep_table.read(store, plan)
    rows = sweep_table.summaries(found)
    values = {
        "request": {"kind": "sweep", **sweep.to_json()},
        "finished": len(found) == sweep.count,
        "pictures": len(found),
        "recipes": [sweep_table.to_json(row) for row in rows],
        "problems": {key: str(error) for key, error in plan.problems.items()},
        "models": dict(plan.models),
    }
    files = {
        FILE: json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "pictures.csv": sweep_table.pictures_csv(found),
        "recipes.csv": sweep_table.recipes_csv(rows),
    }
    for name, text in files.items():
        store.write(name, text.encode())
    return Written(found=found, rows=rows, values=values, files=tuple(files))


@contextmanager
def alone(store: Store) -> Generator[None]:
    """Keeps a second driver of this computer out of the folder; object stores have no locks.

    Raises:
        UserError: another one is at work there.
    """
    if store.folder is None:
        yield
        return
    try:
        lock = Lock(store.folder, _DRIVER)
    except UserError as error:
        pid = Lock.holder(store.folder, _DRIVER)
        if "already uses" not in error.what:
            raise
        raise UserError(
            f"another sweep (process {pid or 'unknown'}) is at work there.",
            where=store.url,
            remedy="Wait for it, or name another folder.",
        ) from error
    try:
        yield
    finally:
        lock.release()


def check_same(store: Store, sweep: Sweep, *, begin: bool = True) -> None:
    """Takes the folder for this sweep, new or to go on with.

    Args:
        begin: write down what is asked, where nothing is yet.

    Raises:
        UserError: it holds another one.
    """
    kept = store.read(ASKED)
    text = json.dumps(sweep.to_json(), indent=1, ensure_ascii=False)
    if kept is None:
        if begin:
            store.write(ASKED, text.encode())
        return
    try:
        known: object = json.loads(kept)
    except ValueError:
        known = None
    mine = json.loads(text)
    if known != mine:
        different = (
            sorted(key for key in mine if known.get(key) != mine[key])
            if isinstance(known, dict)
            else []
        )
        raise UserError(
            f"holds a sweep with other {' and '.join(different) or 'settings'}.",
            where=store.url,
            remedy="Name a new folder, or the same sweep to go on with it.",
        )
