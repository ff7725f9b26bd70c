"""The Runs tab: everything that was done in this workspace, also after a restart.

Three sections: the history with its search, the compressed models, and the frontier. Which one is
shown, and what is searched, is a `RunsLook` of the session; the style sheet hides the others.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gradio as gr

from vqdq.errors import UserError
from vqdq.jobs.history import DiskUse, Search
from vqdq.jobs.requests import KINDS
from vqdq.jobs.run import STATES
from vqdq.report import bundle
from vqdq.ui import frontier, runs_models, runs_rows
from vqdq.ui.desk import Desk
from vqdq.ui.live import Part, Region, Session, Wire, clicked, html, markup
from vqdq.ui.runs_look import SECTIONS, RunsLook
from vqdq.ui.runs_reveal import reveal
from vqdq.ui.wording import escape

PAGE_LENGTH = 25


def build(desk: Desk, session: gr.State, tab: gr.Tab) -> Part:
    """Returns the history, the models and the frontier."""
    disk = DiskUse(desk.workspace.path)
    kinds = [("Every kind", ""), *((runs_rows.KIND_WORDS[kind], kind) for kind in KINDS)]
    states = [("Every state", ""), *((state.capitalize(), state) for state in STATES)]
    with gr.Column(elem_classes=["vq-past"]):
        top = html("", "vq-past-top")
        with gr.Row(elem_classes=["vq-search"]):
            words = gr.Textbox(
                "", label="Search", placeholder="Prompt, model, name, seed 7", elem_id="vq-find"
            )
            kind = gr.Dropdown(kinds, value="", label="Kind", elem_id="vq-find-kind")
            state = gr.Dropdown(states, value="", label="State", elem_id="vq-find-state")
        history = html("", "vq-history")
        models = html("", "vq-models")
        plotted = frontier.build(desk, session)

    def enter(session: Session) -> Session:
        return session.entering("runs")

    def search(session: Session, words: str, kind: str, state: str) -> Session:
        look = session.look(RunsLook)
        given = {"words": words or "", "kind": kind or "", "state": state or ""}
        return session.looking(replace(look, **given, page=0))

    def act(session: Session, event: gr.EventData) -> Session:
        try:
            return _act(desk, session, clicked(event))
        except UserError as error:
            raise gr.Error(
                escape(str(error)), title="That did not work", print_exception=False
            ) from error

    sought = [session, words, kind, state]
    wires = [
        Wire(tab.select, enter, [session], [session]),
        *(Wire(each.change, search, sought, [session]) for each in (words, kind, state)),
        *(Wire(each.click, act, [session], [session]) for each in (top, history, models)),
    ]
    regions = [
        Region("past top", top, markup(lambda s: _top(disk, s))),
        Region("history", history, markup(lambda s: history_html(desk, disk, s))),
        Region("models", models, markup(lambda s: _models(desk, disk, s))),
    ]
    return Part(regions=regions, wires=wires, doors=[history, models]) + plotted


def history_html(desk: Desk, disk: DiskUse, session: Session) -> str:
    """Returns the runs that are looked for, or what will be here when there is none."""
    look = session.look(RunsLook)
    if "runs" not in session.opened or look.section != "history":
        return ""
    search = Search(words=look.words, kind=look.kind, state=look.state)
    found, count = desk.workspace.find(search, limit=PAGE_LENGTH, skip=PAGE_LENGTH * look.page)
    if not count:
        return runs_rows.nothing_found(look.words) if search != Search() else runs_rows.EMPTY
    sizes = disk.look().runs
    drawn = _drawn(desk, session)
    rows = "".join(runs_rows.row(run, sizes.get(run.id)) for run in found)
    return (
        f'<div class="vq-history">{drawn}{runs_rows.chosen_bar()}<div class="vq-rows">{rows}</div>'
        f"{runs_rows.pages(look.page, PAGE_LENGTH, count)}</div>"
    )


def _act(desk: Desk, session: Session, data: dict[str, str]) -> Session:
    """Answers what only this tab offers; the page answers the rest."""
    look = session.look(RunsLook)
    match data.get("act"):
        case "section" if data.get("section") in SECTIONS:
            return session.entering("runs").looking(replace(look, section=data["section"]))
        case "page":
            return session.looking(replace(look, page=max(0, int(data.get("page", 0)))))
        case "report":
            run = desk.workspace.run(data.get("run", ""))
            bundle.write(run, run.folder / f"{run.id}.html", votes=desk.votes)
        case "rename":
            desk.workspace.rename(data.get("run", ""), data.get("name", ""))
        case "delete-many":
            _delete(desk, data.get("runs", "").split())
        case "delete-model":
            desk.workspace.delete_model(data.get("name", ""))
        case "reveal-model":
            reveal(Path(desk.workspace.locate(data.get("name", ""))))
        case _:
            pass
    return session


def _delete(desk: Desk, runs: list[str]) -> None:
    """Deletes every run that can be; says how many could not."""
    kept: list[str] = []
    for run in runs:
        try:
            desk.workspace.delete(run)
        except UserError as error:
            kept.append(str(error))
    if kept:
        raise UserError(
            f"{len(kept)} of {len(runs)} were not deleted.", where="runs", remedy=kept[0]
        )


def _top(disk: DiskUse, session: Session) -> str:
    """The sections, and what the workspace takes on the disk."""
    if "runs" not in session.opened:
        return ""
    chosen = session.look(RunsLook).section
    buttons = "".join(
        f'<button type="button" class="vq-section" data-act="section" data-section="{name}"'
        f' aria-pressed="{str(name == chosen).lower()}">{words}</button>'
        for name, words in SECTIONS.items()
    )
    usage = runs_rows.usage(disk.look())
    return (
        f'<div class="vq-past-top" data-open="{chosen}"><h2>Runs</h2>'
        f'<div class="vq-sections" role="group" aria-label="Sections">{buttons}</div>{usage}</div>'
    )


def _models(desk: Desk, disk: DiskUse, session: Session) -> str:
    if "runs" not in session.opened or session.look(RunsLook).section != "models":
        return ""
    return runs_models.table(desk.workspace.models(), disk.look().models)


def _drawn(desk: Desk, session: Session) -> str:
    """One picture that a link or a click opened; it has no tab of its own."""
    name = session.run("generate")
    if not name:
        return ""
    try:
        run = desk.workspace.run(name)
    except UserError:
        return ""
    return runs_rows.drawn(run)
