"""What the Compress tab shows, as markup: goals, the prediction, the result and its layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vqdq.jobs import arithmetic, inputs
from vqdq.jobs.requests import CompressRequest, PlanRequest
from vqdq.jobs.results import ArithmeticResult
from vqdq.jobs.run import RunRecord
from vqdq.quantities import digits, duration, size
from vqdq.recipe import Plan, Recipe
from vqdq.ui import header, targets
from vqdq.ui.desk import GOALS, Estimate, as_fault
from vqdq.ui.settings import Aim
from vqdq.ui.viewer import swatch
from vqdq.ui.wording import chip, count, decibels, escape, stage

FIRST_ROWS = 8


def goals(sizes: dict[str, int | None], pressed: str) -> str:
    """Returns the cards of the goals; `sizes` are the exact bytes each would give."""
    cards = "".join(
        f'<button type="button" class="vq-goal" data-act="goal" data-goal="{escape(goal.name)}"'
        f' aria-pressed="{str(goal.name == pressed).lower()}"><b>{escape(goal.title)}</b>'
        f'<span class="vq-goal-size" title="The denoiser alone">{size(sizes.get(goal.name))}</span>'
        f"<span>{escape(goal.words)}</span></button>"
        for goal in GOALS
    )
    return f'<div class="vq-goals" role="group" aria-label="What matters to you?">{cards}</div>'


def prediction(
    plan: Plan,
    cost: Estimate,
    found: ArithmeticResult | None = None,
    whole: tuple[int, int] | None = None,
) -> str:
    """Returns the sizes before and after and what it will cost, each with the chip that says
    what it is.

    Args:
        whole: bytes of the whole model before and after, where it is more than the denoiser.
        found: how its layers should be computed; None when their inputs stay as they come.
    """
    exact = chip("exact", "Calculated to the byte from the recipe: the file will have this size.")
    each = ", ".join(
        f"{stage(name).lower()} {duration(seconds)}" for name, seconds in cost.stages.items()
    )
    time = chip("estimated", f"{cost.seconds_source} {each.capitalize()}.")
    memory = chip("estimated", cost.memory_source)
    kept = len(plan.layers) - len(plan.quantized)
    besides = f"and {kept} kept in 16 bits" if kept else ""
    return (
        f"{bars(plan.reference_bytes, plan.predicted_bytes, exact)}{_whole(plan, whole, exact)}"
        '<dl class="vq-figures">'
        f"{_figure('Bits per weight', digits(plan.bits_per_weight), exact)}"
        f"{_figure('Time', '≈ ' + duration(cost.seconds), time)}"
        f"{_figure('Memory', '≈ ' + size(cost.memory_bytes), memory)}"
        f"{_figure('Layers compressed', str(len(plan.quantized)), besides)}"
        f"</dl>{inputs_card(plan.recipe, found)}"
    )


def _whole(plan: Plan, whole: tuple[int, int] | None, exact: str) -> str:
    """Of what the two bars are, what becomes of the other components, and of the whole model."""
    also = "".join(
        f", {escape(each.component.name)} {size(each.reference_bytes)} →"
        f" {size(each.predicted_bytes)}"
        for each in plan.others
    )
    if whole is None:
        return f'<p class="vq-others">Also {also[2:]} {exact}</p>' if also else ""
    said = f"The denoiser alone{'; also ' + also[2:] if also else ''}."
    return (
        f'<p class="vq-others">{said} The whole model: <b>{size(whole[1])}</b> instead of'
        f" {size(whole[0])} {exact}</p>"
    )


def inputs_card(recipe: Recipe, found: ArithmeticResult | None) -> str:
    """Returns what becomes of activations, integer or simulated, before it is known for sure."""
    if found is None:
        return ""
    how = "From the shapes and the methods. It is measured when the model is opened."
    note = chip("estimated", how)
    return _arithmetic(inputs.in_words(recipe), found, note, more=arithmetic.price(found))


def _arithmetic(words: str, found: ArithmeticResult, note: str, *, more: str = "") -> str:
    """Widths, counts with their chips, and sentences; `note`: the chip for where they come from."""
    kinds = (
        ("integer", found["integer"], "8-bit codes, int8 products, sums in int32."),
        ("fp8", found.get("fp8", 0), "8-bit floats (e4m3) and their products, sums in float32."),
        ("simulated", found["simulated"], "The same codes, multiplied in float."),
    )
    counts = [
        f"{count(number, 'layer')} {chip(kind, how)}" for kind, number, how in kinds if number
    ]
    if found["attention_simulated"]:
        how = "Rounded, and multiplied in float."
        counts.append(f"attention {chip('simulated', how)}")
    return (
        f'<div class="vq-arithmetic"><p><b>{escape(words[:1].upper() + words[1:])}</b></p>'
        f"<p>{' · '.join(counts)} {note}</p>"
        f'<p class="vq-muted">{escape(arithmetic.in_words(found))} {escape(more)}</p></div>'
    )


def bars(reference: int, yours: int, note: str) -> str:
    """Returns the two sizes as bars of one scale; `note` is a ready chip."""
    share = 100 * yours / reference if reference else 100
    return (
        f'<div class="vq-sizes">{_size_row(reference)}'
        f'<div class="vq-size"><span>Yours</span><div><i class="vq-swatch-1"'
        f' style="width:{share:.2f}%"></i>'
        f"</div><b>{size(yours)}</b><span>{note}</span></div></div>"
    )


def _size_row(reference: int) -> str:
    return (
        '<div class="vq-size"><span>FP16</span><div><i class="vq-swatch-0"'
        f' style="width:100%"></i></div><b>{size(reference)}</b><span></span></div>'
    )


def unmeasured(plan: Plan, aim: Aim | None) -> str:
    """Returns the prediction of a target whose layers are not measured yet."""
    after = None if aim is None else aim.bytes
    words = (
        f"{aim.bits:g} bits on average"
        if aim is not None and aim.bits is not None
        else f"at most {size(after)}"
    )
    yours = (
        f'<div class="vq-size"><span>Yours</span><div></div><b>{size(after) if after else "?"}</b>'
        "<span></span></div>"
    )
    return (
        f'<div class="vq-sizes">{_size_row(plan.reference_bytes)}{yours}</div>'
        f'<p class="vq-muted vq-unmeasured">{words}. First it is measured how much each of the'
        f" {count(len(plan.quantized), 'layer')} matters; then you see the bits that each one"
        " gets.</p>"
    )


def unknown(error_panel: str) -> str:
    """Returns the place of the prediction while the settings do not fit; the fault says why."""
    return f'<div class="vq-unknown">{error_panel}</div>'


def welcome() -> str:
    """Returns the first words, where later the progress and the result stand."""
    return (
        '<div class="vq-progress vq-welcome"><p>Choose what matters to you and press'
        " <b>Compress</b>. Your model"
        " stays as it is: a smaller copy is written beside it, and you can stop at any"
        " time.</p></div>"
    )


def status(run: RunRecord | None, ahead: int = 0) -> str:
    """Returns the state of a compression: the words before it, its progress, its fault or its
    result.

    Args:
        ahead: runs that have to end before a queued one begins.
    """
    if run is None or not isinstance(run.request, CompressRequest | PlanRequest):
        return welcome()
    if run.state in ("queued", "running"):
        return header.progress(run, ahead)
    if run.state == "done":
        planned = isinstance(run.request, PlanRequest)
        return ready(run) if planned else result(run, run.result or {})
    work = "plan" if isinstance(run.request, PlanRequest) else "compression"
    kept = "Finished layers are kept." if work == "compression" else "The measurement is kept."
    if work == "plan" and run.stage != "distortion":
        kept = ""
    identity = escape(run.id)
    resume = (
        '<button type="button" class="vq-button" data-act="resume"'
        f' data-run="{identity}">Resume</button>'
    )
    away = (
        '<button type="button" class="vq-button vq-button-quiet" data-act="dismiss"'
        f' data-run="{identity}">Dismiss</button>'
    )
    if run.state == "cancelled":
        done = f" after {count(run.done, 'layer')}" if run.done and run.stage == "encode" else ""
        return (
            f'<div class="vq-progress"><div class="vq-progress-head"><b>Stopped{done}</b></div>'
            f'<p class="vq-muted">Nothing half-written was left behind. {kept}</p>'
            f'<div class="vq-actions">{resume}{away}</div></div>'
        )
    title = {"interrupted": "Interrupted"}.get(run.state, f"The {work} failed")
    fault = as_fault(run.error)
    keeps = f"{fault.remedy} {kept}".strip()
    return header.fault(
        fault.what, where=fault.where, remedy=keeps, title=title, actions=resume + away
    )


def ready(run: RunRecord) -> str:
    """Returns the words of a finished plan; its layers stand below."""
    values = run.result or {}
    spread = [row["bits_per_weight"] for row in values.get("layers", ()) if row["method"]]
    how = "Signal over error of one step, from each layer's error; calibration makes it better."
    guess = chip("estimated", how)
    ranges = f"{digits(min(spread))} to {digits(max(spread))} bits" if spread else "no layer"
    return (
        '<div class="vq-progress vq-result" role="status"><div class="vq-progress-head">'
        f"<b>The plan is ready</b></div><p class='vq-muted'>{ranges} by layer, least where it"
        f" matters least, about {decibels(values.get('predicted_sqnr_db'))} in the noise"
        f" prediction {guess}. Press <b>Compress</b> to make it.</p></div>"
    )


def result(run: RunRecord, values: dict[str, Any]) -> str:
    """Returns the result of a finished compression, sizes first."""
    request = run.request
    assert isinstance(request, CompressRequest)
    before, after = values.get("reference_bytes"), values.get("measured_bytes")
    times = f"{digits(before / after)} times smaller" if before and after else ""
    also = [
        f"{each['component']} {size(each['reference_bytes'])} → {size(each['measured_bytes'])}"
        for each in values.get("other_components") or ()
    ]
    facts = [
        f"the denoiser {times}" if times else "",
        *also,
        f"{digits(values.get('bits_per_weight'))} bits per weight",
        "calibrated" if values.get("calibrated") else "",
        _learnt(values.get("learnt")),
        duration(values.get("seconds", run.seconds)),
        f"{size(values.get('peak_memory_bytes'))} of memory at most",
    ]
    measured = chip("measured", "Read from the file and from this run, not predicted.")
    output = Path(values.get("output") or request.output)
    folder, brief = escape(output), escape(f"{output.parent.name}/{output.name}")
    name = escape(request.name)
    return (
        '<div class="vq-progress vq-result" role="status">'
        f"<p class='vq-large'>{size(after)} <span>instead of {size(before)}</span></p>"
        f"<p class='vq-muted'>{' · '.join(escape(fact) for fact in facts if fact)} {measured}</p>"
        f"{_lacking(values)}{_measured(values)}{_foretold(values)}"
        '<div class="vq-actions">'
        f'<button type="button" class="vq-button" data-act="compare"'
        f' data-name="{name}">Compare with FP16'
        "</button>"
        f'<button type="button" class="vq-button vq-button-quiet"'
        f' data-copy="{folder}">Copy folder path</button>'
        f'<span class="vq-code vq-path" title="{folder}">{brief}</span></div></div>'
    )


def _lacking(values: dict[str, Any]) -> str:
    """What the new model needs before it can draw."""
    names: list[str] = values.get("missing") or []
    if not names:
        return ""
    return (
        f"<p>Missing to draw: <b>{escape(', '.join(names))}</b>. Copy"
        f" {escape(' and '.join(f'{name}/' for name in names))} of a model of the same family into"
        " its folder.</p>"
    )


def _measured(values: dict[str, Any]) -> str:
    """How the layers of the finished model are computed."""
    found = values.get("arithmetic")
    if not found:
        return ""
    note = chip("measured", "Asked of each layer of the new model, opened on this machine.")
    return _arithmetic(values.get("activations", ""), found, note)


def _foretold(values: dict[str, Any]) -> str:
    """What was expected beside what it took: memory and each stage; the size is exact."""
    expected = values.get("forecast")
    if not expected:
        return ""
    rows = [
        ("Memory", size(expected["memory_bytes"]), size(values.get("peak_memory_bytes"))),
        *(
            (stage(name), duration(seconds), duration((values.get("stages") or {}).get(name)))
            for name, seconds in expected["stages"].items()
        ),
    ]
    cells = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{before}</td><td>{after}</td></tr>'
        for name, before, after in rows
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("What", "Expected", "Measured"))
    return (
        '<details class="vq-more"><summary>What was expected</summary>'
        f'<table class="vq-numbers"><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table>'
        "</details>"
    )


def _learnt(values: dict[str, Any] | None) -> str:
    """What fine-tuning did, in words."""
    if not values:
        return ""
    return f"fine-tuned ({digits(values['before_db'])} → {decibels(values['after_db'])})"


def details(run: RunRecord | None) -> str:
    """Returns the table below the status: of a finished plan, or of a finished compression."""
    if run is not None and run.state == "done" and isinstance(run.request, PlanRequest):
        return targets.table(run)
    return layers_heading(run)


def layers_heading(run: RunRecord | None) -> str:
    """Returns the table of a finished compression's layers, the worst first; a quiet line before
    it.
    """
    rows: Sequence[dict[str, Any]] = (run.result or {}).get("layers", ()) if run else ()
    if run is None or run.state != "done" or not rows:
        return ""
    packed = [row for row in rows if row.get("method")]
    kept = [row for row in rows if not row.get("method")]
    seen = "output_error_db" if any(row.get("output_error_db") for row in packed) else "error_db"
    by_error = sorted(packed, key=lambda row: -(row.get(seen) or -999))
    rest = by_error[FIRST_ROWS:] + kept
    more = (
        f'<details class="vq-more"><summary>All'
        f" {count(len(rows), 'layer')}</summary>{_table(rest, seen)}</details>"
        if rest
        else ""
    )
    return (
        '<section class="vq-layers"><h2>Layers, the largest error first</h2>'
        f"{_table(by_error[:FIRST_ROWS], seen)}{more}</section>"
    )


def matches(plan: Plan) -> str:
    """Returns how many layers each rule takes, in the order of the rules."""
    taken = [0] * len(plan.recipe.rules)
    for layer in plan.layers:
        if layer.rule is not None:
            taken[layer.rule] += 1
    used = [(rule, n) for rule, n in zip(plan.recipe.rules, taken, strict=True) if n]
    lines = "".join(
        f"<li><code>{escape(rule.pattern)}</code><span>{count(number, 'layer')}</span></li>"
        for rule, number in used
    )
    idle = len(taken) - len(used)
    rest = (
        f"<li>{count(idle, 'rule')} for layers that this model does not have</li>" if idle else ""
    )
    return f'<ul class="vq-matches" aria-label="Layers that each rule takes">{lines}{rest}</ul>'


def _figure(name: str, value: str, note: str) -> str:
    return f"<div><dt>{escape(name)}</dt><dd>{escape(value)} <small>{note}</small></dd></div>"


def _table(rows: Sequence[dict[str, Any]], seen: str) -> str:
    """The layers' table; `seen` is the error that is shown, of the weights or of the outputs."""
    worst = -40.0  # dB at which the bar is empty; 0 dB fills it
    heading = "Output error" if seen == "output_error_db" else "Error"
    lines: list[str] = []
    for row in rows:
        error = row.get(seen)
        full = 0.0 if error is None else max(0.0, min(100.0, 100 * (1 - error / worst)))
        bar = (
            f'<i class="vq-error" style="--share:{full:.0f}%" aria-hidden="true"></i>'
            if row.get("method")
            else ""
        )
        method = escape(row.get("method") or "16-bit")
        if row.get("activation"):
            method += f' <span class="vq-muted">· a{row.get("activation_bits")}</span>'
        lines.append(
            f'<tr><th scope="row">{swatch(1 if row.get("method") else 0)}'
            f'<span class="vq-code">{escape(row.get("name", ""))}</span></th><td>{method}</td>'
            f"<td>{digits(row.get('bits_per_weight'))}</td>"
            f"<td>{decibels(error) if row.get('method') else '–'}{bar}</td>"
            f"<td>{size(row.get('bytes'))}</td></tr>"
        )
    head = "".join(
        f'<th scope="col">{name}</th>' for name in ("Layer", "Method", "Bits", heading, "Size")
    )
    return (
        f'<div class="vq-scroll" tabindex="0" role="region" aria-label="Layers"><table'
        f' class="vq-numbers">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
