"""The page: header, tabs, one clock. What it shows is in the store; a reload attaches again.

Every event of the page itself is private; programs use the named endpoints of `api`.
"""

from __future__ import annotations

import socket
import threading
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from vqdq.errors import UserError
from vqdq.jobs import votes
from vqdq.jobs.store import Workspace
from vqdq.ui import (
    api,
    blind,
    compare,
    compress,
    grid,
    grid_state,
    header,
    inspect,
    model_panel,
    provenance,
    runs,
    theme,
)
from vqdq.ui.blame_look import BlameLook
from vqdq.ui.desk import ASSETS, DEFAULT_GOAL, Desk
from vqdq.ui.guard import Guard
from vqdq.ui.live import (
    ACTION,
    PRIVATE,
    Region,
    Session,
    changed,
    changing,
    clicked,
    follow,
    html,
    markup,
)
from vqdq.ui.login import Users
from vqdq.ui.look import Look
from vqdq.ui.wording import escape, shorten

IDLE_SECONDS = 2.0  # between two questions of a page whether anything is new
BUSY_SECONDS = 0.7  # while a job of this person runs
TABS = ("compress", "compare", "inspect", "blind", "grid", "runs")
HOMES = {
    "compress": "compress",
    "plan": "compress",
    "compare": "compare",
    "inspect": "inspect",
    "blame": "inspect",
    "blind": "blind",
    "grid": "grid",
}
"""The tab that shows a kind of run; the others are shown in the history."""
LOOKS = {
    "compare": compare.CompareLook,
    "inspect": Look,
    "blame": BlameLook,
    "blind": blind.BlindLook,
    "grid": grid.GridLook,
}
"""What is looked at begins anew when another run of the kind is opened."""


def build(workspace: Workspace, model: str, *, desk: Desk | None = None) -> gr.Blocks:
    """Returns the page for one workspace and one model; `desk` is another one only in tests."""
    desk = desk or Desk(workspace, model)
    with gr.Blocks(title="VQDQ", analytics_enabled=False, fill_width=True) as page:
        session = gr.State(Session())
        news = gr.Number(0, visible="hidden", elem_id="vq-news")
        with gr.Row(elem_id="vq-header"):
            identity = html(model_panel.identity_html(desk), "vq-identity")
            pill = html("", "vq-pill")
            html(header.tools(), "vq-tools")
            picture = provenance.door()
        chooser = model_panel.build(desk, identity, session)
        with gr.Tabs(elem_id="vq-tabs") as tabs:
            with gr.Tab("Compress", id="compress", render_children=True):
                own, _, made = compress.build(desk, session)
                with made["table"]:
                    first = html(_first(desk), "vq-first", elem_classes=["vq-table"])
            with gr.Tab("Compare", id="compare", render_children=True) as beside:
                parts, bridge = compare.build(desk, session, beside, made["fits"])
                parts += own
                parts += provenance.build(desk, session, tabs, picture, bridge.asked, bridge.chosen)
            with gr.Tab("Inspect", id="inspect", render_children=True) as inside:
                parts += inspect.build(desk, session, inside)
            with gr.Tab("Blind", id="blind", render_children=True) as apart:
                parts += blind.build(desk, session, apart)
            with gr.Tab("Grid", id="grid", render_children=True) as wide:
                parts += grid.build(desk, session, wide)
            with gr.Tab("Runs", id="runs", render_children=True) as past:
                parts += runs.build(desk, session, past)
        html(header.HELP, "vq-help")
        clock = gr.Timer(IDLE_SECONDS, active=False)  # it starts when the page has arrived
        quick = gr.Timer(BUSY_SECONDS, active=False)
        api.build(desk)

        regions = [
            Region("pill", pill, markup(lambda _: _pill(desk))),
            Region("first look", first, markup(lambda _: _first(desk))),
            Region("quick", quick, lambda _: _busy(desk)),
            *chooser.part.regions,
            *parts.regions,
        ]
        targets = [region.component for region in regions]

        def bring(state: Session) -> list[Any]:
            if not state.page.arrived:
                return [gr.skip()] * len(regions)
            try:
                return follow(regions, state)
            except UserError:  # the index is busy: the clock asks again in a moment
                return [gr.skip()] * len(regions)

        def refresh(state: Session) -> list[Any]:
            with state.page.lock:  # two at once would send the same twice, or the older one last
                return bring(state.latest)

        def peek(state: Session, told: int) -> int:
            """The clock asks about all regions at once and mostly hears the number that it knows.

            Updating a component costs the server and the browser much more than its rendering,
            even where it stays as it is.
            """
            try:
                return told + int(state.page.arrived and changed(regions, state.latest))
            except UserError:  # the index is busy: the clock asks again in a moment
                return told

        restore, inputs, settings = made["restore"]

        def arrive(state: Session, request: gr.Request, *values: Any) -> list[Any]:
            """A page was opened: attach to what its address names, or to what is going on."""
            asked = {key: str(value)[:4000] for key, value in request.query_params.items()}
            _put_on_desk(desk, asked.get("model", ""))
            state = _opened(desk, state, asked.get("run", ""))
            tab = asked.get("tab", "")
            chosen = gr.skip()
            if tab in TABS:
                state, chosen = state.entering(tab), gr.Tabs(selected=tab)
            state.arrive()
            running = gr.Timer(active=True)
            return [chosen, *restore(asked, *values), *bring(state), state, running]

        def switch(state: Session, model: str, *values: Any) -> list[Any]:
            """Another model was opened on this page: everything is about it from now on."""
            if not model:
                return [gr.skip()] * (len(settings) + len(regions) + 1)
            desk.choose(model)
            state = state.anew()
            return [*restore({}, *values), *bring(state), state]

        for event in chooser.opened:
            event.then(
                changing(switch),
                [session, chooser.chosen, *inputs],
                [*settings, *targets, session],
                **ACTION,
            )
        outputs = [tabs, *settings, *targets, session, clock]
        page.load(changing(arrive), [session, *inputs], outputs, **ACTION)
        for timer in (clock, quick):
            timer.tick(peek, [session, news], news, trigger_mode="once", **PRIVATE)
        news.change(refresh, session, targets, trigger_mode="multiple", **PRIVATE)

        def then_refresh(event: Any) -> None:
            event.then(refresh, session, targets, **PRIVATE)

        button, start, inputs = made["start"]
        outputs = [session, made["trouble"]]
        then_refresh(button.click(changing(start), [session, *inputs], outputs, **ACTION))

        def act(state: Session, event: gr.EventData, floor: bool, *asked: Any) -> list[Any]:
            return _act(desk, state, clicked(event), bool(floor), asked)

        for component in (pill, made["status"], *parts.doors):
            outputs = [session, tabs, bridge.chosen]
            then_refresh(
                component.click(
                    changing(act), [session, bridge.floor, *bridge.asked], outputs, **ACTION
                )
            )
        for wire in parts.wires:
            knows = session in wire.inputs[:1]
            function = changing(wire.function) if knows else wire.function
            then_refresh(wire.trigger(function, wire.inputs, wire.outputs, **ACTION))
    return page


def wait() -> None:
    """Returns never: the server works in its own thread until Ctrl-C."""
    threading.Event().wait()


def launch_options(
    workspace: Workspace, *, host: str, port: int, auth: Users | None, root_path: str = ""
) -> dict[str, Any]:
    """Returns what `Blocks.launch` needs so that the page is ours, local and private.

    Args:
        auth: who may come in, or None for whoever sits at this computer.
        root_path: behind a proxy, the path or address under which it serves the page.
    """
    wall = Middleware(Guard, workspace=workspace, login=auth is not None)
    return {
        "server_name": host,
        "server_port": port,
        "auth": None if auth is None else auth.check,
        "root_path": root_path or None,
        "app_kwargs": {"middleware": [wall]},
        "theme": theme.build(),
        "head": theme.head(),
        "favicon_path": str(ASSETS / "favicon.png"),
        "allowed_paths": [str(workspace.runs_folder)],
        "blocked_paths": [
            str(workspace.path / name) for name in ("models", "index.sqlite", votes.FOLDER)
        ],
        "ssr_mode": False,
        "run_history": False,
        "share": False,
        "enable_monitoring": False,
        "footer_links": [],
        "show_error": False,
        "max_file_size": "100mb",  # COCO's captions are 92 MB
        "quiet": True,
        "pwa": False,
    }


def check_address(host: str, port: int, auth: Users | None) -> None:
    """Raises `UserError` for an address open to others without a login, or one that is taken."""
    if host not in ("127.0.0.1", "localhost", "::1") and auth is None:
        raise UserError(
            f"{host} can be reached by other computers, and there is no login.",
            where="--host",
            remedy="Add --auth NAME:PASSWORD (or a file with such lines), or leave --host out.",
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UserError(
                f"port {port} of {host} cannot be used.",
                where="--port",
                remedy=f"Is the studio running already? Choose another port ({error}).",
            ) from error


def _act(
    desk: Desk, state: Session, data: dict[str, str], floor: bool, asked: tuple[Any, ...]
) -> list[Any]:
    """Answers a button inside our own markup: session, tabs and chosen models.

    Args:
        floor: whether the Compare tab measures it;
        asked: prompt, seed, steps and guidance of the Compare tab.
    """
    run, kind = data.get("run", ""), data.get("kind", "")
    tab: Any = gr.skip()
    chosen: Any = gr.skip()
    try:
        match data.get("act"):
            case "cancel":
                desk.workspace.cancel(run)
            case "resume":
                desk.workspace.resume(run)
                state = state.dismissing("")
            case "dismiss":
                state = state.dismissing(run)
            case "delete":
                desk.workspace.delete(run)
            case "reveal":
                runs.reveal(desk.workspace.run(run).folder)
            case "open":
                state = _opened(desk, state, run)
                tab = gr.Tabs(selected=HOMES.get(kind, "runs"))
            case "compare":
                name = data.get("name", "")
                tab, chosen = gr.Tabs(selected="compare"), gr.update(value=[name])
                prompt, seed, steps, guidance = _cell(desk, state, data.get("key", "")) or asked
                if str(prompt or "").strip():
                    settings = prompt, seed, [name], steps, guidance
                    run = compare.submit(desk, *settings, floor=floor)
                    state = state.showing(compare=run).looking(compare.CompareLook())
            case "start":
                tab = gr.Tabs(selected="compress")
            case "first":
                goal = data.get("goal", DEFAULT_GOAL)
                state = state.showing(compress=compress.submit(desk, desk.preset(goal)))
            case _:
                pass
    except UserError as error:
        raise gr.Error(
            escape(str(error)), title="That did not work", print_exception=False
        ) from error
    return [state, tab, chosen]


def _cell(desk: Desk, state: Session, key: str) -> tuple[Any, ...] | None:
    """Prompt, seed, steps and guidance of a cell of the grid on display."""
    grid = grid_state.shown(desk, state) if key else None
    picture = None if grid is None else grid_state.picture_of(grid, key)
    if picture is None:
        return None
    return picture.prompt, picture.seed, picture.steps, picture.guidance


def _opened(desk: Desk, state: Session, run_id: str) -> Session:
    """The session with that run on display, when there is one."""
    if not run_id:
        return state
    try:
        run = desk.workspace.run(run_id)
    except UserError:
        return state  # an old link: the newest is shown instead
    kind = {"plan": "compress"}.get(run.kind, run.kind)
    if kind in LOOKS:
        state = state.looking(LOOKS[kind]())
    return state.showing(**{kind: run.id}).dismissing("").entering(HOMES.get(kind, "runs"))


def _put_on_desk(desk: Desk, model: str) -> None:
    """Takes up the model in an address, where it is one that was opened here before."""
    if not model or model == desk.model:
        return
    if model_panel.allowed(desk, model):
        desk.choose(model)
        return
    gr.Warning(
        escape(f"{shorten(model, 80)} was not opened here yet. Choose it by its name above."),
        title="Another model",
    )


def _busy(desk: Desk) -> tuple[str, Any]:
    run = desk.workspace.active()
    busy = run is not None and run.state == "running"
    return str(busy), gr.Timer(active=busy)


def _pill(desk: Desk) -> str:
    active = desk.workspace.active()
    waiting = len(desk.workspace.queue()) - (active is not None and active.state == "queued")
    return header.pill(active, max(0, waiting))


def _first(desk: Desk) -> str:
    found = compare.latest(desk)
    if found is None:
        return compare.viewer.empty("Compress, then compare: both pictures will be here.")
    return compare.comparison.light_table(found) + compare.comparison.caption(found)
