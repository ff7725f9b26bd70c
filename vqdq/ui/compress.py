"""The Compress tab: say what matters, see the exact size, press one button."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from vqdq import codecs
from vqdq.errors import UserError
from vqdq.jobs.requests import CompressRequest
from vqdq.jobs.run import RunRecord
from vqdq.params import Params, describe
from vqdq.recipe import Recipe, Rule
from vqdq.ui import forms, header, panels, rules
from vqdq.ui.desk import DEFAULT_GOAL, GOALS, Desk
from vqdq.ui.live import ACTION, PRIVATE, Region, Session, clicked, html, markup
from vqdq.ui.wording import escape, size

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Settings:
    """The controls that make a recipe, in the order in which events pass their values."""

    method: Any
    rules: Any
    seed: Any
    name: Any
    forms: dict[str, tuple[forms.Form, forms.Form]]
    groups: dict[str, tuple[Any, Any]]

    @property
    def inputs(self) -> list[Any]:
        """Every control."""
        drawn = [c for basic, deep in self.forms.values() for c in (*basic.inputs, *deep.inputs)]
        return [self.method, self.rules, self.seed, self.name, *drawn]

    def recipe(self, method: str, lines: str, seed: float | None, *values: Any) -> Recipe:
        """Returns the recipe that the controls describe.

        Raises:
            UserError: the setting, what is wrong with it and what is allowed.
        """
        place = 0
        for name, (basic, deep) in self.forms.items():
            names = [*basic.components, *deep.components]
            if name == method:
                entered = dict(zip(names, values[place : place + len(names)], strict=True))
                params = forms.read(codecs.get(name).settings, entered)
                return recipe_of(method, params, rules.parse(lines or ""), whole(seed, "seed"))
            place += len(names)
        codecs.get(method)  # raises with the nearest name
        raise UserError(f'"{method}" has no form.', where="method")


def build(desk: Desk) -> tuple[list[Region], Settings, dict[str, Any]]:
    """Returns the regions that follow the store, the settings, and what page.py wires to other
    tabs.
    """
    start = desk.preset(DEFAULT_GOAL)
    special, general = rules.split(start)
    opening = foresee(desk, lambda: start)
    with gr.Row(elem_classes=["vq-columns"]):
        with gr.Column(elem_classes=["vq-controls"]):
            goals = html(_heading(opening) + opening.goals, "vq-goals")
            settings = _controls(general, special, opening)
            button = gr.Button(
                opening.button, variant="primary", elem_id="vq-compress", interactive=opening.ready
            )
            trouble = html("", "vq-compress-fault")
        with gr.Column(elem_classes=["vq-results"]):
            outlook = html(opening.panel, "vq-outlook")
            status = html(panels.welcome(), "vq-status")
            table = gr.Column(elem_id="vq-first-look")
            layers = html("", "vq-layers")
    matched = settings.groups["rules"][1]
    views = [goals, outlook, button, matched, settings.name]

    def look(*values: Any) -> list[Any]:
        """Goals, prediction, button, matches and name for the settings as they are."""
        method, lines, seed, _, *rest = values
        seen = foresee(desk, lambda: settings.recipe(method, lines, seed, *rest))
        return [
            _heading(seen) + seen.goals,
            seen.panel,
            gr.update(value=seen.button, interactive=seen.ready),
            seen.matches,
            gr.update(placeholder=seen.name),
        ]

    def choose(event: gr.EventData, *values: Any) -> list[Any]:
        """The settings of the goal that was pressed, and what follows from them."""
        chosen = desk.preset(clicked(event).get("goal", DEFAULT_GOAL))
        after = _filled(settings, chosen, list(values))
        shown = [gr.update(value=value) for value in after]
        return [*shown, *_visibility(settings, after[0]), *look(*after)]

    def switch(*values: Any) -> list[Any]:
        return [*_visibility(settings, values[0]), *look(*values)]

    def start_job(session: Session, *values: Any) -> tuple[Session, str]:
        try:
            method, lines, seed, name, *rest = values
            recipe = named(desk, settings.recipe(method, lines, seed, *rest))
            run = submit(desk, recipe, name or "")
        except UserError as error:
            gr.Warning(escape(str(error)), title="Not started")
            panel = header.fault(
                error.what, where=error.where, remedy=error.remedy, title="Not started"
            )
            return session, panel
        return session.showing(compress_run=run), ""

    def restore(query: Mapping[str, str], *values: Any) -> list[Any]:
        """The settings that the page's address names, and what follows from them."""
        try:
            linked = recipe_in(desk, query)
        except UserError as error:
            gr.Warning(escape(str(error)), title="The link has a fault")
            linked = None
        after = list(values) if linked is None else _filled(settings, linked, list(values))
        shown = [gr.skip() if linked is None else gr.update(value=value) for value in after]
        return [*shown, *_visibility(settings, after[0]), *look(*after)]

    areas = [part for name in settings.forms for part in settings.groups[name]]
    goals.click(choose, settings.inputs, [*settings.inputs, *areas, *views], **PRIVATE)
    settings.method.input(switch, settings.inputs, [*areas, *views], **PRIVATE)
    for control in settings.inputs[1:]:
        # A paste or a fill-in by the browser is a change of a text, but not always an input.
        changed = control.change if control is settings.rules else control.input
        changed(look, settings.inputs, views, trigger_mode="always_last", **ACTION)

    wiring = {
        "restore": (restore, settings.inputs, [*settings.inputs, *areas, *views]),
        "start": (button, start_job, settings.inputs),
        "trouble": trouble,
        "status": status,
        "table": table,
    }
    return (
        [
            Region("status", status, markup(lambda s: panels.status(shown_run(desk, s)))),
            Region("layers", layers, markup(lambda s: panels.layers_heading(shown_run(desk, s)))),
        ],
        settings,
        wiring,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """What the settings would give, as the page shows it.

    `link`: the settings for the page's address; `ready`: False when they do not fit.
    """

    goals: str
    link: str
    panel: str
    button: str
    ready: bool
    matches: str
    name: str


def foresee(desk: Desk, make: Callable[[], Recipe]) -> Outlook:
    """Returns what the recipe from `make` would give; the fault where it cannot be made or does
    not fit.
    """
    try:
        recipe = named(desk, make())
        plan = desk.plan(recipe)
    except UserError as error:
        broken = desk.fault is not None
        title = "This model cannot be opened" if broken else "These settings do not fit"
        panel = header.fault(error.what, where=error.where, remedy=error.remedy, title=title)
        return Outlook(
            goals=panels.goals(goal_sizes(desk), ""),
            link="",
            panel=panels.unknown(panel),
            button="Compress",
            ready=False,
            matches="",
            name="",
        )
    pressed = next((goal.name for goal in GOALS if goal.name == recipe.name), "")
    return Outlook(
        goals=panels.goals(goal_sizes(desk), pressed),
        link=link_of(desk, recipe),
        panel=panels.prediction(plan, desk.estimate(plan)),
        button=f"Compress to {size(plan.predicted_bytes)}",
        ready=True,
        matches=panels.matches(plan),
        name=desk.suggest_name(recipe),
    )


def submit(desk: Desk, recipe: Recipe, name: str = "") -> str:
    """Returns the id of a queued compression after checking that its plan fits.

    Raises:
        UserError: the recipe does not fit the model, or the name is taken.
    """
    desk.plan(recipe)
    free = name.strip() or desk.suggest_name(recipe)
    return desk.workspace.submit(CompressRequest(model=desk.model, recipe=recipe, name=free))


def shown_run(desk: Desk, session: Session) -> RunRecord | None:
    """Returns the compression on display: the chosen one, else the newest that was not put away."""
    newest = desk.workspace.runs("compress", limit=20)
    chosen = next((run for run in newest if run.id == session.compress_run), None)
    run = chosen or next(iter(newest), None)
    return None if run is None or run.id == session.dismissed else run


def goal_sizes(desk: Desk) -> dict[str, int | None]:
    """Returns the exact bytes that each goal gives for the model on the desk; None where it
    cannot.
    """
    sizes: dict[str, int | None] = {}
    for goal in GOALS:
        try:
            sizes[goal.name] = desk.plan(desk.preset(goal.name)).predicted_bytes
        except UserError:
            sizes[goal.name] = None  # the card shows a dash; pressing it says why
    return sizes


def recipe_of(method: str, params: Params, special: tuple[Rule, ...], seed: int) -> Recipe:
    """Returns the recipe: special rules first, then the method for every other layer."""
    bits = next(
        (f"-{getattr(params, i.name)}bit" for i in describe(type(params)) if i.name == "bits"), ""
    )
    general = Rule(pattern="*", method=method, params=params)
    return Recipe(name=f"{method}{bits}", rules=(*special, general), seed=seed)


def named(desk: Desk, recipe: Recipe) -> Recipe:
    """Returns the preset that makes the same bytes, or the recipe under its own name."""
    same = (preset for preset in desk.presets.values() if preset.digest == recipe.digest)
    return next(same, recipe)


def link_of(desk: Desk, recipe: Recipe) -> str:
    """Returns the part of the page's address that brings `recipe` back; "" for the default."""
    if recipe.name == DEFAULT_GOAL:
        return ""
    if recipe.name in desk.presets:
        return urlencode({"recipe": recipe.name})
    return urlencode({"rules": rules.render(recipe.rules), "seed": recipe.seed})


def recipe_in(desk: Desk, query: Mapping[str, str]) -> Recipe | None:
    """Returns the recipe that an address names, or None when it names none.

    Raises:
        UserError: it names one that does not exist or has a fault.
    """
    if query.get("recipe"):
        return desk.preset(query["recipe"])
    if not query.get("rules"):
        return None
    seed = whole(query.get("seed") or 0, "seed")
    recipe = Recipe(name="linked", rules=rules.parse(query["rules"]), seed=seed)
    rules.split(recipe)
    return recipe


def whole(value: float | str | None, where: str) -> int:
    """Returns a whole number of a number field, which may be empty or hold a fraction.

    Raises:
        UserError: it is no whole number, or not one that a seed can be.
    """
    allowed = "Use 0 to 2^63 − 1."
    if value is None or value == "":
        raise UserError("is empty.", where=where, remedy=allowed)
    try:
        number = int(value) if float(value).is_integer() else None
    except (ValueError, OverflowError):
        number = None
    if number is None:
        raise UserError(f"{str(value)[:40]} is not a whole number.", where=where, remedy=allowed)
    if not 0 <= number <= MAX_SEED:
        raise UserError(f"{number} is out of range.", where=where, remedy=allowed)
    return number


def _controls(general: Rule, special: tuple[Rule, ...], opening: Outlook) -> Settings:
    choices = [(codecs.get(name).title, name) for name in codecs.names()]
    drawn: dict[str, tuple[forms.Form, forms.Form]] = {}
    basics: dict[str, Any] = {}
    deeps: dict[str, Any] = {}
    method = gr.Dropdown(
        choices, value=general.method, label="Method", filterable=False, elem_id="vq-method"
    )
    parts: dict[str, tuple[list[str], list[str]]] = {}
    basic_forms: dict[str, forms.Form] = {}
    for name in codecs.names():
        params = codecs.get(name).settings
        parts[name] = _two_depths(params)
        with gr.Column(visible=name == general.method, elem_classes=["vq-basic"]) as basics[name]:
            shown = general.params if name == general.method else None
            basic_forms[name] = forms.build(params, values=shown, only=parts[name][0])
    with gr.Accordion("Advanced settings", open=False, elem_id="vq-advanced"):
        for name in codecs.names():
            params = codecs.get(name).settings
            with gr.Column(visible=name == general.method) as deeps[name]:
                shown = general.params if name == general.method else None
                deep = forms.build(params, values=shown, only=parts[name][1])
            drawn[name] = (basic_forms[name], deep)
        seed = gr.Number(
            0, label="Seed", precision=0, info="Same seed, same bytes", elem_id="vq-recipe-seed"
        )
        title = gr.Textbox(
            label="Name of the new model", max_lines=1, elem_id="vq-name", placeholder=opening.name
        )
    with gr.Accordion("Layer rules", open=False, elem_id="vq-rules"):
        lines = gr.Textbox(
            rules.render(special),
            label="One rule a line; the first that matches decides",
            info=f'"pattern = method settings", or "pattern = {rules.KEEP}" for 16 bits',
            lines=4,
            max_lines=12,
            placeholder=rules.EXAMPLE,
            elem_id="vq-rule-lines",
        )
        matched = html(opening.matches, "vq-rule-matches")
    groups = {name: (basics[name], deeps[name]) for name in codecs.names()}
    return Settings(method, lines, seed, title, drawn, groups | {"rules": (lines, matched)})


def _two_depths(params: type[Params]) -> tuple[list[str], list[str]]:
    """Names of the settings in sight and of those in the fold, as the method declares them."""
    infos = describe(params)
    return [i.name for i in infos if not i.advanced], [i.name for i in infos if i.advanced]


def _filled(settings: Settings, recipe: Recipe, values: Sequence[Any]) -> list[Any]:
    """The values of all controls when `recipe` is shown; other methods keep what they hold."""
    special, general = rules.split(recipe)
    after = [general.method, rules.render(special), recipe.seed, *values[3:]]
    place = 4
    for name, (basic, deep) in settings.forms.items():
        for field in (*basic.components, *deep.components):
            if name == general.method:
                after[place] = getattr(general.params, field)
            place += 1
    return after


def _visibility(settings: Settings, method: Any) -> list[Any]:
    return [gr.update(visible=name == method) for name in settings.forms for _ in range(2)]


def _heading(seen: Outlook) -> str:
    return f'<h2 data-link="{escape(seen.link)}">What matters to you?</h2>'
