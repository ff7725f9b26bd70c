"""The Compress tab: say what matters, see the exact size, press one button."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from vqdq import codecs
from vqdq.errors import UserError
from vqdq.jobs.requests import CompressRequest
from vqdq.jobs.run import RunRecord
from vqdq.jobs.variants import plain, require_calibration
from vqdq.quantities import roughly, size
from vqdq.recipe import Plan, Recipe
from vqdq.ui import fit_panel, header, inputs, links, panels, recipes, rules, settings, targets
from vqdq.ui.desk import DEFAULT_GOAL, GOALS, Desk
from vqdq.ui.live import ACTION, PRIVATE, Part, Region, Session, clicked, html, markup
from vqdq.ui.settings import Settings, Wish
from vqdq.ui.wording import escape


def build(desk: Desk, session: gr.State) -> tuple[Part, Settings, dict[str, Any]]:
    """Returns the regions that follow the store, the settings, and what page.py wires to other
    tabs.
    """
    start = Wish(recipe=desk.preset(DEFAULT_GOAL))
    special, general = rules.split(start.recipe)
    opening = foresee(desk, lambda: start)
    with gr.Row(elem_classes=["vq-columns"]):
        with gr.Column(elem_classes=["vq-controls"]):
            goals = html(_heading(opening) + opening.goals, "vq-goals")
            with gr.Accordion("All recipes", open=False, elem_id="vq-recipes"):
                every = html(opening.recipes, "vq-every-recipe")
            fitting, fits = fit_panel.build(desk, session)
            made = settings.choices(general)
            button = gr.Button(  # it can be pressed when the page has arrived
                opening.button, variant="primary", elem_id="vq-compress", interactive=False
            )
            trouble = html("", "vq-compress-fault")
            matched = settings.folds(
                made, general, special, name=opening.name, matches=opening.matches
            )
        with gr.Column(elem_classes=["vq-results"]):
            outlook = html(opening.panel, "vq-outlook")
            status = html(panels.welcome(), "vq-status")
            table = gr.Column(elem_id="vq-first-look")
            layers = html("", "vq-layers")
            planned = html("", "vq-planned")
    controls, areas = made.controls, list(made.areas.values())
    switches = [controls["calibrate"], controls["finetune"]]
    views = [goals, every, outlook, button, matched, controls["name"], *switches]

    def look(*values: Any) -> list[Any]:
        """Everything that follows from the settings as they are."""
        entered = made.named(values)
        seen = foresee(desk, lambda: made.wish(entered))
        calibrate, finetune = switch_labels(seen, entered["method"])
        return [
            _heading(seen) + seen.goals,
            seen.recipes,
            seen.panel,
            gr.update(value=seen.button, interactive=seen.ready),
            seen.matches,
            gr.update(placeholder=seen.name),
            calibrate,
            finetune,
        ]

    def show(wish: Wish | None, values: tuple[Any, ...]) -> list[Any]:
        """The controls filled with `wish`, what is visible then, and what follows."""
        entered = made.named(values)
        after = entered if wish is None else made.filled(wish, entered)
        shown = [gr.skip() if wish is None else gr.update(value=item) for item in after.values()]
        filled = dict(zip(made.controls, shown, strict=True))
        seen = look(*after.values())
        return [*filled.values(), *made.visibility(after), *seen]

    def choose(event: gr.EventData, *values: Any) -> list[Any]:
        """The recipe that was pressed, with what a card needs beside it; a goal leaves the two
        switches as they are.
        """
        data = clicked(event)
        chosen = desk.preset(data.get("recipe") or data.get("goal") or DEFAULT_GOAL)
        chosen = settings.with_others(chosen, [*filter(None, data.get("also", "").split(","))])
        entered = made.named(values)
        after = made.filled(Wish(recipe=chosen), entered)
        if not data.get("recipe"):
            after |= {name: entered[name] for name in ("calibrate", "finetune")}
        shown = [gr.update(value=value) for value in after.values()]
        return [*shown, *made.visibility(after), *look(*after.values())]

    def switch(*values: Any) -> list[Any]:
        return [*made.visibility(made.named(values)), *look(*values)]

    def start_job(session: Session, *values: Any) -> tuple[Session, str]:
        try:
            wish = made.wish(made.named(values))
            run = submit_wish(desk, replace(wish, recipe=named(desk, wish.recipe)))
        except UserError as error:
            gr.Warning(escape(str(error)), title="Not started")
            panel = header.fault(
                error.what, where=error.where, remedy=error.remedy, title="Not started"
            )
            return session, panel
        return session.showing(compress=run), ""

    def restore(query: Mapping[str, str], *values: Any) -> list[Any]:
        """The settings that the page's address names, and what follows from them."""
        try:
            linked = links.wish_in(desk, query)
        except UserError as error:
            gr.Warning(escape(str(error)), title="The link has a fault")
            linked = None
        return show(linked, values)

    for pressed in (goals, every, fits):
        pressed.click(choose, made.inputs, [*made.inputs, *areas, *views], **PRIVATE)
    switching = ("method", "aim", "calibrate", "finetune", *inputs.SWITCHES)
    for name in switching:
        controls[name].input(switch, made.inputs, [*areas, *views], **PRIVATE)
    for name, control in controls.items():
        if name not in switching:
            # A paste or a fill-in by the browser is a change of a text, but not always an input.
            changed = control.change if name == "rules" else control.input
            changed(look, made.inputs, views, trigger_mode="always_last", **ACTION)
    # A plan that is ready turns the button from planning to compressing.
    planned.change(look, made.inputs, views, trigger_mode="always_last", **ACTION)

    wiring = {
        "restore": (restore, made.inputs, [*made.inputs, *areas, *views]),
        "start": (button, start_job, made.inputs),
        "trouble": trouble,
        "fits": fits,
        "status": status,
        "table": table,
    }
    regions = [
        Region("status", status, markup(lambda s: _status(desk, s))),
        Region("layers", layers, markup(lambda s: panels.details(shown_run(desk, s)))),
        Region("planned", planned, lambda s: _planned(desk, s)),
    ]
    return Part(regions=regions) + fitting, made, wiring


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """What the settings would give, as the page shows it.

    `link`: the settings for the page's address; `ready`: False when they do not fit;
    `calibrate`, `finetune`: estimated seconds of the two switches.
    """

    goals: str
    recipes: str
    link: str
    panel: str
    button: str
    ready: bool
    matches: str
    name: str
    calibrate: float | None = None
    finetune: float | None = None


def foresee(desk: Desk, make: Callable[[], Wish]) -> Outlook:
    """Returns what the wish from `make` would give; the fault where it cannot be made or does
    not fit.
    """
    sizes = desk.preset_sizes
    try:
        asked = make()
        wish = replace(asked, recipe=named(desk, asked.recipe))
        plan = desk.plan(wish.recipe)
        require_calibration(plan)
        served = targets.recipe_for(desk, wish)
        final = plan if served is None else desk.plan(served)
    except UserError as error:
        broken = desk.fault is not None
        title = "This model cannot be opened" if broken else "These settings do not fit"
        panel = header.fault(error.what, where=error.where, remedy=error.remedy, title=title)
        return Outlook(
            goals=panels.goals(sizes, ""),
            recipes=recipes.groups(desk.presets, sizes, ""),
            link="",
            panel=panels.unknown(panel),
            button="Compress",
            ready=False,
            matches="",
            name="",
        )
    calibrate, finetune = switch_seconds(desk, plan)
    pressed = "" if wish.aim is not None else wish.recipe.name
    bare = named(desk, plain(wish.recipe)).name
    goal = next((goal.name for goal in GOALS if wish.aim is None and goal.name == bare), "")
    waiting = desk.measuring_seconds(plan) if served is None else 0.0
    return Outlook(
        goals=panels.goals(sizes, goal),
        recipes=recipes.groups(desk.presets, sizes, pressed),
        link=links.link_of(desk, wish),
        panel=panels.unmeasured(plan, wish.aim)
        if served is None
        else panels.prediction(
            final, desk.estimate(final), desk.arithmetic(final.recipe), desk.whole_bytes(final)
        ),
        button=f"Measure layers and plan (about {roughly(waiting)})"
        if served is None
        else f"Compress to {size(final.total_bytes)}",
        ready=True,
        matches=panels.matches(plan),
        name=desk.suggest_name(served or wish.recipe),
        calibrate=calibrate,
        finetune=finetune,
    )


def switch_seconds(desk: Desk, plan: Plan) -> tuple[float, float]:
    """Returns what calibration and fine-tuning would add, whether or not they are on."""
    both = desk.estimate(replace(plan, recipe=recipes.learning(plan.recipe))).stages
    alone = desk.estimate(replace(plan, recipe=plain(plan.recipe))).stages
    extra = both["encode"] - alone["encode"]
    recorded = max(0.0, both["record"] - alone.get("record", 0.0))  # ranges ask for it anyway
    return recorded + both["calibrate"] + max(0.0, extra), both["finetune"]


def switch_labels(seen: Outlook, method: str) -> list[Any]:
    """Returns the updates of the two switches: what they take, and whether they do anything."""
    uses = codecs.get(method).uses_hessian
    time = [
        "" if seconds is None else f" (about {roughly(seconds)})"
        for seconds in (seen.calibrate, seen.finetune)
    ]
    return [
        gr.update(
            label=f"Calibrate on prompts{time[0]}" if uses else "Calibrate on prompts",
            info=None if uses else "This method works from the weights alone.",
        ),
        gr.update(label=f"Fine-tune afterwards{time[1]}"),
    ]


def submit_wish(desk: Desk, wish: Wish) -> str:
    """Returns the id of a queued compression or, when layers must be measured first, of a plan.

    Raises:
        UserError: the recipe does not fit the model, or the name is taken.
    """
    require_calibration(desk.plan(wish.recipe))
    recipe = targets.recipe_for(desk, wish)
    if recipe is None:
        return desk.workspace.submit(targets.request_of(desk, wish))
    return submit(desk, recipe, wish.name)


def submit(desk: Desk, recipe: Recipe, name: str = "") -> str:
    """Returns the id of a queued compression after checking that its plan fits.

    Raises:
        UserError: the recipe does not fit the model, or the name is taken.
    """
    expected = desk.forecast(desk.plan(recipe))
    free = name.strip() or desk.suggest_name(recipe)
    request = CompressRequest(model=desk.model, recipe=recipe, name=free, forecast=expected)
    return desk.workspace.submit(request)


def shown_run(desk: Desk, session: Session) -> RunRecord | None:
    """Returns the compression or the plan on display: the chosen one, else the newest that was
    not put away.
    """
    newest = [*desk.runs("compress", 20), *desk.runs("plan", 20)]
    newest.sort(key=lambda run: run.created, reverse=True)
    chosen = _chosen(desk, session.run("compress"))
    run = chosen or next(iter(newest), None)
    return None if run is None or run.id == session.dismissed else run


def _status(desk: Desk, session: Session) -> str:
    run = shown_run(desk, session)
    return panels.status(run, desk.ahead(run))


def _chosen(desk: Desk, run_id: str) -> RunRecord | None:
    """The run that was opened, whatever model it is about; None when it was deleted."""
    try:
        return desk.workspace.run(run_id) if run_id else None
    except UserError:
        return None


def _planned(desk: Desk, session: Session) -> tuple[str, Any]:
    """A mark that changes when a plan becomes ready; nothing is shown.

    A page that opens gets none: what it shows then follows from its address in the same answer,
    and a change would be handled with the controls as they were before it.
    """
    done = (run.id for run in desk.runs("plan", 5) if run.state == "done")
    mark = f'<i data-plan="{escape(next(done, ""))}"></i>'
    return mark, mark if "planned" in session.page.sent else gr.skip()


def named(desk: Desk, recipe: Recipe) -> Recipe:
    """Returns the preset that makes the same bytes, or the recipe under its own name."""
    same = (preset for preset in desk.presets.values() if preset.digest == recipe.digest)
    return next(same, recipe)


def _heading(seen: Outlook) -> str:
    return f'<h2 data-link="{escape(seen.link)}">What matters to you?</h2>'
