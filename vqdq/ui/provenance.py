"""A picture dropped on the page brings back what it was drawn from: prompt, settings and variant.

The picture is read on the server (`jobs.provenance`) and deleted at once; only its recipe is used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from vqdq.errors import UserError
from vqdq.jobs import provenance
from vqdq.jobs.provenance import Provenance
from vqdq.jobs.run import read_json
from vqdq.recipe import Recipe
from vqdq.ui import compress, header
from vqdq.ui.desk import Desk
from vqdq.ui.live import Part, Region, Session, Wire, clicked, html, markup
from vqdq.ui.wording import escape, shorten

MAX_STEPS, MAX_GUIDANCE = 50, 12.0  # of the sliders on the page
MAX_SEED = 2**53  # what a browser's numbers hold


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureLook:
    """The picture that was dropped: what it says, or why it says nothing.

    Attributes:
        variant: the model of the workspace that draws it, or "".
        making: id of the compression that was started for it.
    """

    found: Provenance | None = None
    fault: UserError | None = None
    variant: str = ""
    making: str = ""


def door() -> gr.UploadButton:
    """Returns what takes a picture; unseen, and outside of the tabs, so that it is always there."""
    return gr.UploadButton(
        "Open a picture", file_types=[".png"], elem_id="vq-picture", elem_classes=["vq-unseen"]
    )


def build(
    desk: Desk,
    session: gr.State,
    tabs: gr.Tabs,
    upload: gr.UploadButton,
    asked: list[Any],
    chosen: gr.CheckboxGroup,
) -> Part:
    """Returns the place where a picture is opened, a part of the Compare tab.

    Args:
        upload: the page's `door`.
        asked: prompt, seed, steps and guidance of the Compare tab; chosen: its variants.
    """
    html(
        '<p class="vq-picture vq-muted"><button type="button" class="vq-button vq-button-small"'
        " data-open-picture>Open a picture</button><span>A picture that was drawn here carries its"
        " recipe. Open it, or drop it anywhere on the page, and its prompt, settings and model come"
        " back.</span></p>",
        "vq-picture-words",
    )
    note = html("", "vq-picture-note")

    def opened(session: Session, path: str | None) -> tuple[Any, ...]:
        nothing = [gr.skip()] * (2 + len(asked))
        if not path:
            return session, *nothing
        try:
            found = provenance.read(path)
        except UserError as error:
            look = PictureLook(fault=error)
            return session.looking(look), gr.Tabs(selected="compare"), *nothing[1:]
        finally:
            Path(path).unlink(missing_ok=True)
        variant = variant_of(desk, found)
        session = session.looking(PictureLook(found=found, variant=variant)).entering("compare")
        values = (
            found.prompt,
            min(found.seed, MAX_SEED),
            min(found.steps, MAX_STEPS),
            min(found.guidance, MAX_GUIDANCE),
        )
        names = gr.update(value=[variant]) if variant else gr.skip()
        return session, gr.Tabs(selected="compare"), *values, names

    def act(session: Session, event: gr.EventData) -> Session:
        look = session.look(PictureLook)
        match clicked(event).get("act"):
            case "forget":
                return session.looking(PictureLook())
            case "make" if look.found is not None:
                recipe = recipe_of(desk, look.found)
                if recipe is None:
                    return session
                try:
                    run = compress.submit(desk, recipe)
                except UserError as error:
                    raise gr.Error(escape(str(error)), print_exception=False) from error
                return session.showing(compress=run).looking(replace(look, making=run))
            case _:
                return session

    wires = [
        Wire(upload.upload, opened, [session, upload], [session, tabs, *asked, chosen]),
        Wire(note.click, act, [session], [session]),
    ]
    region = Region("picture", note, markup(lambda s: note_html(desk, s.look(PictureLook))))
    return Part(regions=[region], wires=wires)


def variant_of(desk: Desk, found: Provenance) -> str:
    """Returns the model of the workspace that has the picture's recipe, or ""."""
    models = desk.workspace.models()
    if found.digest:
        for model in models:
            facts = read_json(model.path / "vqdq.json") or {}
            if facts.get("recipe_digest") == found.digest and model.model in (None, desk.model):
                return model.name
        return ""
    same = (m.name for m in models if m.name == found.model and m.recipe == found.recipe_name)
    return next(same, "") if found.recipe_name else ""


def recipe_of(desk: Desk, found: Provenance) -> Recipe | None:
    """Returns the recipe that would make the picture's model, or None when nobody knows it."""
    if found.recipe is not None:
        return found.recipe
    return desk.presets.get(found.recipe_name)


def note_html(desk: Desk, look: PictureLook) -> str:
    """Returns what a dropped picture was and what can be done about it."""
    if look.fault is not None:
        fault = look.fault
        close = '<button type="button" class="vq-button" data-act="forget">Close</button>'
        return header.fault(
            f"“{fault.where}” {fault.what}",
            remedy=fault.remedy,
            title="This picture brings nothing back",
            actions=close,
        )
    if look.found is None:
        return ""
    found = look.found
    lines = [_restored(found), _model(desk, look, found), *_limits(found)]
    quiet = "vq-button vq-button-quiet"
    buttons = f'<button type="button" class="{quiet}" data-act="forget">Close</button>'
    if _makeable(desk, look, found):
        buttons = (
            '<button type="button" class="vq-button" data-act="make">Compress it again</button>'
            + buttons
        )
    words = "".join(f"<p>{escape(line)}</p>" for line in lines if line)
    return (
        f'<div class="vq-picture-found" role="status"><h3>The picture was read</h3>{words}'
        f'<div class="vq-actions">{buttons}</div></div>'
    )


def _makeable(desk: Desk, look: PictureLook, found: Provenance) -> bool:
    return (
        bool(found.recipe_name)
        and not look.variant
        and not look.making
        and recipe_of(desk, found) is not None
    )


def _restored(found: Provenance) -> str:
    return (
        f"Prompt, seed {found.seed}, {found.steps} steps and guidance {found.guidance:g} are set as"
        " they were. Press Draw to see it again."
    )


def _model(desk: Desk, look: PictureLook, found: Provenance) -> str:
    if not found.recipe_name:
        return f"It was drawn by the original, {shorten(found.model, 80) or 'without a name'}."
    drawn = f"It was drawn by a model compressed with {shorten(found.recipe_name, 80)}"
    if look.variant:
        return f"{drawn}; {look.variant} has this recipe and is chosen."
    if look.making:
        return f"{drawn}. That is being made again; it will be offered above."
    if found.base and found.base != desk.model:
        return f"{drawn} from {shorten(found.base, 80)}, which is not the model on the desk."
    if recipe_of(desk, found) is None:
        return f"{drawn}, which is not in this workspace, and the picture does not carry its rules."
    return f"{drawn}, which is not in this workspace."


def _limits(found: Provenance) -> list[str]:
    """What the page cannot set as it was."""
    lines: list[str] = []
    if found.steps > MAX_STEPS:
        lines.append(f"This page draws in {MAX_STEPS} steps at most; vqdq compare takes more.")
    if found.guidance > MAX_GUIDANCE:
        lines.append(f"This page offers guidance up to {MAX_GUIDANCE:g}; vqdq compare takes more.")
    if found.seed > MAX_SEED:
        lines.append("The seed is larger than a browser can hold; vqdq compare takes it.")
    return lines
