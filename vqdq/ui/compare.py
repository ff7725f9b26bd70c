"""The Compare tab: one prompt, one seed, the original and the compressed models side by side.

Many prompts make a batch: its sets are listed below the light table, and a click puts one on it.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import gradio as gr

from vqdq.demo.scenes import EXAMPLE_PROMPTS
from vqdq.errors import UserError
from vqdq.jobs.requests import CompareRequest
from vqdq.jobs.run import RunRecord
from vqdq.quantities import roughly
from vqdq.ui import compare_extras, comparison, drawn_on, header, settings, viewer
from vqdq.ui.compare_batch import CompareLook, board, drawn
from vqdq.ui.compare_choice import SHOWN, require_variants
from vqdq.ui.compare_gallery import first_model_html, gallery_html, words_html
from vqdq.ui.compare_numbers import blank_numbers, numbers
from vqdq.ui.comparison import Comparison
from vqdq.ui.desk import ASSETS, Desk, as_fault
from vqdq.ui.fit_panel import PRESENT, FitLook
from vqdq.ui.live import Part, Region, Session, Wire, clicked, html, markup
from vqdq.ui.wording import escape, file_url

FIRST_LOOK = ASSETS / "first-look"
STEPS, GUIDANCE = 20, 3.0
CHEAP_SECONDS = 1.5  # up to which the floor is measured unasked
SMALL = 50_000_000  # parameters of a model whose floor is cheap before anything was drawn


@dataclass(frozen=True, kw_only=True, slots=True)
class Bridge:
    """What other tabs need of this one.

    Attributes:
        chosen: the control with the variants to show.
        asked: prompt, seed, steps and guidance as they stand; `floor`: whether to measure it.
    """

    chosen: gr.CheckboxGroup
    asked: list[Any]
    floor: gr.Checkbox


def build(desk: Desk, session: gr.State, tab: gr.Tab, fits: Any) -> tuple[Part, Bridge]:
    """Returns the regions and events of this tab, and what other tabs need of it.

    Args:
        fits: the component whose buttons choose a way that fits a card.
    """
    first = EXAMPLE_PROMPTS[0] if desk.is_demo else ""
    with gr.Column(elem_classes=["vq-compare"]):
        with gr.Row(elem_classes=["vq-ask"]):
            prompt = gr.Textbox(
                first,
                label="Prompt",
                lines=1,
                max_lines=3,
                elem_id="vq-prompt",
                placeholder="What the picture should show",
            )
            seed = gr.Number(7, label="Seed", precision=0, elem_id="vq-seed", min_width=112)
            keep = gr.Checkbox(True, label="Keep seed", elem_id="vq-keep", min_width=112)
            draw = gr.Button("Draw", variant="primary", elem_id="vq-draw", min_width=112)
        words = html(words_html() if desk.is_demo else "", "vq-words")
        fault = html("", "vq-compare-fault")
        with gr.Row(elem_classes=["vq-look"]):
            stage = html(viewer.empty(""), "vq-compare-stage", elem_classes=["vq-table"])
            beside = html(blank_numbers(), "vq-compare-numbers", elem_classes=["vq-follow"])
        sets = html("", "vq-batch")
        with gr.Row(elem_classes=["vq-options"]):
            chosen = gr.CheckboxGroup(
                [], label=f"Compressed models to show, up to {SHOWN}", elem_id="vq-variants"
            )
            steps = gr.Slider(1, 50, STEPS, step=1, label="Steps", elem_id="vq-steps", buttons=[])
            guidance = gr.Slider(
                0, 12, GUIDANCE, step=0.1, label="Guidance", elem_id="vq-guidance", buttons=[]
            )
            floor = gr.Checkbox(
                floor_is_cheap(desk),
                label="Measure the floor",
                info=_floor_words(desk),
                elem_id="vq-floor",
            )
            place = drawn_on.build()
        first_model = html("", "vq-first-model")
        with gr.Accordion("Many prompts", open=False, elem_id="vq-many"):
            prompts = gr.Textbox(
                "\n".join(EXAMPLE_PROMPTS[:6]) if desk.is_demo else "",
                label="Prompts, one a line, at most 50",
                lines=6,
                max_lines=12,
                elem_id="vq-prompts",
            )
            with gr.Row(elem_classes=["vq-ask"]):
                seeds = gr.Textbox("7", label="Seeds, at most 8", elem_id="vq-seeds", min_width=112)
                draw_all = gr.Button("Draw all", elem_id="vq-draw-all", min_width=112)
        clip, lpips = compare_extras.build()
        gallery = html("", "vq-gallery")
    more = [chosen, steps, guidance, floor, clip, lpips, place]

    def example(event: gr.EventData, now: str) -> Any:
        if clicked(event).get("act") != "example":
            return gr.skip()
        return random.choice([text for text in EXAMPLE_PROMPTS if text != now])

    def start(state: Session, hold: bool, text: str, number: Any, *more: Any) -> tuple[Any, ...]:
        number = number if hold else random.randrange(10_000)
        try:
            whole = settings.whole(number, "seed")
            run = submit_batch(desk, (text,), (whole,), *_read(*more))
        except UserError as error:
            return state, gr.skip(), _refused(error)
        return state.showing(compare=run).looking(CompareLook()), number, ""

    def start_all(state: Session, text: str, numbers_: str, *more: Any) -> tuple[Any, ...]:
        try:
            run = submit_batch(desk, lines(text), read_seeds(numbers_), *_read(*more))
        except UserError as error:
            return state, _refused(error)
        return state.showing(compare=run).looking(CompareLook()), ""

    def fitted(state: Session, event: gr.EventData) -> Any:
        own = state.look(FitLook).card == PRESENT
        return drawn_on.applied(clicked(event).get("way", "") if own else "")

    def act(state: Session, event: gr.EventData) -> Session:
        data, look = clicked(event), state.look(CompareLook)
        match data.get("act"):
            case "cancel":
                desk.workspace.cancel(data["run"])
            case "resume":
                desk.workspace.resume(data["run"])
            case "set":
                return state.looking(replace(look, place=int(data["set"])))
            case "sort":
                return state.looking(replace(look, by=data["by"]))
            case "open":
                return state.showing(compare=data["run"]).looking(CompareLook())
            case _:
                pass
        return state

    wires = [
        *(Wire(t, start, [session, keep, prompt, seed, *more], [session, seed, fault])
          for t in (draw.click, prompt.submit)),
        Wire(draw_all.click, start_all, [session, prompts, seeds, *more], [session, fault]),
        Wire(words.click, example, [prompt], [prompt]),
        *(Wire(part.click, act, [session], [session]) for part in (stage, sets, gallery)),
        Wire(tab.select, _enter, [session], [session]),
        Wire(fits.click, fitted, [session], [place]),
    ]  # fmt: skip
    regions = [
        Region("compare stage", stage, markup(lambda s: stage_html(desk, s))),
        Region("compare numbers", beside, markup(lambda s: numbers_html(desk, s))),
        Region("compare sets", sets, markup(lambda s: _sets_html(desk, s))),
        Region("words", words, markup(lambda _: words_html() if desk.is_demo else "")),
        Region("variants", chosen, lambda s: _choices(desk, s)),
        Region("floor", floor, lambda _: _floor_choice(desk)),
        Region("first model", first_model, markup(lambda _: first_model_html(desk))),
        Region("gallery", gallery, markup(lambda s: gallery_html(desk, shown_run(desk, s)))),
    ]
    part = Part(regions=regions, wires=wires, doors=[first_model])
    return part, Bridge(chosen=chosen, asked=[prompt, seed, steps, guidance], floor=floor)


def _enter(state: Session) -> Session:
    return state.entering("compare")


def submit(
    desk: Desk,
    prompt: str,
    seed: Any,
    variants: Any,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    *,
    floor: bool = False,
) -> str:
    """Returns the id of a queued comparison.

    Raises:
        UserError: what is wrong with the prompt, the seed, the models or the settings.
    """
    whole = settings.whole(seed, "seed")
    return submit_batch(desk, (prompt,), (whole,), variants, steps, guidance, floor)


def submit_batch(
    desk: Desk,
    prompts: tuple[str, ...],
    seeds: tuple[int, ...],
    variants: Any,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    floor: bool = False,
    clip: str = "",
    lpips: bool = False,
    place: str = drawn_on.PROCESSOR,
) -> str:
    """Returns the id of a queued comparison of every prompt with every seed.

    Args:
        place: where it is drawn, as `drawn_on` names it.

    Raises:
        UserError: what is wrong with the prompts, the seeds, the models or the settings.
    """
    names = tuple(str(name) for name in variants)
    require_variants(desk, names)
    request = CompareRequest.batch(
        model=desk.model,
        variants=names,
        prompts=prompts,
        seeds=seeds,
        steps=int(steps),
        guidance=float(guidance),
        floor=floor,
        clip=clip,
        lpips=lpips,
        **drawn_on.fields(place),
    )
    return desk.workspace.submit(request)


def _read(
    variants: Any,
    steps: float,
    guidance: float,
    floor: bool,
    clip: str | None,
    lpips: bool,
    place: str | None,
) -> tuple[Any, ...]:
    """The values of the controls below the pictures, as `submit_batch` takes them."""
    extras = (clip or "").strip(), bool(lpips)
    return variants or (), int(steps), guidance, bool(floor), *extras, place or drawn_on.PROCESSOR


def lines(text: object) -> tuple[str, ...]:
    """Returns the lines of a text that are not empty, each once."""
    found = (line.strip() for line in str(text or "").splitlines())
    return tuple(dict.fromkeys(line for line in found if line))


def read_seeds(text: object) -> tuple[int, ...]:
    """Returns the whole numbers in "7, 8 9", each once.

    Raises:
        UserError: a word that is no number.
    """
    words = re.split(r"[,;\s]+", str(text or "").strip())
    return tuple(dict.fromkeys(settings.whole(word, "seeds") for word in words if word))


def floor_seconds(desk: Desk) -> float | None:
    """Returns what the floor of one picture costs, from earlier comparisons; None before any."""
    runs = [run for run in desk.runs("compare", 10) if run.state == "done"]
    took = [float(((run.result or {}).get("reference") or {}).get("seconds") or 0) for run in runs]
    return 2.1 * median(took) if took else None  # drawn twice; bfloat16 is slower on most CPUs


def floor_is_cheap(desk: Desk) -> bool:
    """True where measuring the floor is so quick that it is done unasked."""
    seconds = floor_seconds(desk)
    if seconds is not None:
        return seconds < CHEAP_SECONDS
    return desk.fault is None and desk.card.parameters < SMALL


def shown_run(desk: Desk, session: Session) -> RunRecord | None:
    """Returns the comparison on display: the chosen one, else the newest that is active or done."""
    if session.run("compare"):
        try:
            return desk.workspace.run(session.run("compare"))
        except UserError:
            pass  # it was deleted: show the newest instead
    states = ("queued", "running", "done")
    return next((run for run in desk.runs("compare", 20) if run.state in states), None)


def latest(desk: Desk) -> Comparison | None:
    """Returns the newest finished comparison, its first variant, or the shipped first look."""
    run = next((run for run in desk.runs("compare", 20) if run.state == "done"), None)
    if run is not None:
        found = comparison.of_run(run)
        return replace(found, variants=found.variants[:1])
    return comparison.first_look(FIRST_LOOK) if desk.is_demo else None


def stage_html(desk: Desk, session: Session) -> str:
    """Returns the light table for what the session shows: empty, drawing, stopped or done."""
    run = shown_run(desk, session)
    found = _on_table(desk, run, session)
    if run is None:
        if found is not None:
            return comparison.light_table(found) + comparison.caption(found)
        return viewer.empty("Your pictures will be here: the original and the compressed model.")
    if found is not None:
        table = comparison.light_table(found)
        return f'<div data-shown-run="{escape(run.id)}">{table}</div>'
    if run.state in ("queued", "running"):
        preview = f"{file_url(run.preview)}?{run.done}" if run.preview else None
        return viewer.loading(header.progress(run, desk.ahead(run)), preview)
    fault = as_fault(run.error)
    again = (
        f'<button type="button" class="vq-button" data-act="resume"'
        f' data-run="{escape(run.id)}">Draw again'
        "</button>"
    )
    if run.state == "cancelled":
        words = "<p>Stopped before it was done.</p>"
        return viewer.covered(
            f'<div class="vq-progress">{words}<div class="vq-actions">{again}</div></div>'
        )
    panel = header.fault(
        fault.what, where=fault.where, remedy=fault.remedy, title="Not drawn", actions=again
    )
    return viewer.covered(panel)


def numbers_html(desk: Desk, session: Session) -> str:
    """Returns the numbers beside the light table."""
    found = _on_table(desk, shown_run(desk, session), session)
    return blank_numbers() if found is None else numbers(found)


def _on_table(desk: Desk, run: RunRecord | None, session: Session) -> Comparison | None:
    """The pictures that can be shown: of a finished run, or of a batch as far as it is drawn."""
    if run is None:
        return comparison.first_look(FIRST_LOOK) if desk.is_demo else None
    assert isinstance(run.request, CompareRequest)
    if not run.request.is_batch:
        return comparison.of_run(run) if run.state == "done" else None
    place = min(session.look(CompareLook).place, len(run.request.sets) - 1)
    found = comparison.sets_of(run)[place]
    return comparison.of_run(run, place) if found["reference"] and drawn(found) else None


def _sets_html(desk: Desk, session: Session) -> str:
    run = shown_run(desk, session)
    if run is None or not isinstance(run.request, CompareRequest) or not run.request.is_batch:
        return ""
    look = session.look(CompareLook)
    return board(run, look.place, look.by)


def _refused(error: UserError) -> str:
    gr.Warning(escape(str(error)), title="Not drawn")
    return header.fault(error.what, where=error.where, remedy=error.remedy, title="Not drawn")


def _choices(desk: Desk, session: Session) -> tuple[str, Any]:
    del session
    known = desk.variants()
    value = [known[0][1]] if known else []  # what was just made is what one wants to see
    return repr(known), gr.update(choices=known, value=value, visible=bool(known))


def _floor_choice(desk: Desk) -> tuple[str, Any]:
    words = _floor_words(desk)
    return words, gr.update(info=words)


def _floor_words(desk: Desk) -> str:
    seconds = floor_seconds(desk)
    cost = "" if seconds is None else f" About {roughly(seconds)} more a picture."
    return f"FP16 against itself: what 16-bit rounding alone changes.{cost}"
