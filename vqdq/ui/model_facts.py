"""What the model panel shows, as markup: the check of what is typed, recent models, the facts."""

from __future__ import annotations

from collections.abc import Sequence

from vqdq.errors import UserError
from vqdq.jobs.recents import Recent
from vqdq.models.glance import Glance
from vqdq.models.inventory import Inventory, Part
from vqdq.progress import Event
from vqdq.quantities import digits, size
from vqdq.ui import header
from vqdq.ui.wording import chip, escape, moment, shorten

_STORED = {"float32": "32 bits", "float16": "16 bits", "bfloat16": "16 bits (bf16)"}


def check(seen: Glance) -> str:
    """Returns what is known of the words that are typed, and how to go on from them."""
    state = "good" if seen.ready else "bad" if seen.kind == "fault" else "open"
    remedy = f' <span class="vq-muted">{escape(seen.remedy)}</span>' if seen.remedy else ""
    ways = "".join(
        f'<button type="button" class="vq-way-on" data-act="type" data-text="{escape(path)}">'
        f"{escape(shorten(path, 80))}</button>"
        for path in seen.suggestions
    )
    listed = f'<div class="vq-ways-on">{ways}</div>' if ways else ""
    words = f"<p>{escape(seen.words)}{remedy}</p>" if seen.words or remedy else ""
    return f'<div class="vq-check" data-state="{state}" aria-live="polite">{words}{listed}</div>'


def opening(model: str, event: Event | None) -> str:
    """Returns how far the opening of a model is."""
    share = 100 * event.done / event.total if event is not None and event.total else 0
    stage = "" if event is None else event.stage
    loading = stage in ("download", "import")
    words = {"download": "Downloading", "import": "Importing"}.get(stage, "Reading the headers")
    much = (
        f"{size(event.done)} of {size(event.total)}"
        if loading and event is not None and event.total
        else ""
    )
    return (
        '<div class="vq-check" data-state="open"><div class="vq-progress-head vq-opening">'
        f'<span role="status">{words} <span class="vq-code">{escape(shorten(model, 48))}</span>'
        f'</span><span class="vq-muted">{much}</span><span class="vq-space"></span>'
        '<button type="button" class="vq-button vq-button-small" data-act="stop"'
        f' data-text="{escape(model)}">Stop</button></div>'
        f'<div class="vq-track" role="progressbar" aria-label="{words}" aria-valuemin="0"'
        f' aria-valuemax="100" aria-valuenow="{share:.0f}" data-unknown="{str(not much).lower()}">'
        f'<i style="width:{share:.1f}%"></i></div></div>'
    )


def stopped() -> str:
    """Returns the words after a person stopped a download."""
    return (
        '<div class="vq-check" data-state="open"><p>Stopped. What was downloaded is kept;'
        " opening it again goes on from there.</p></div>"
    )


def fault(error: UserError) -> str:
    """Returns why a model was not opened; what is on the desk stays there."""
    panel = header.fault(
        error.what, where=error.where, remedy=error.remedy, title="This model was not opened"
    )
    return f'<div class="vq-check">{panel}</div>'


def recents(entries: Sequence[Recent], model: str) -> str:
    """Returns the models that were opened before as buttons, newest first.

    Args:
        model: what is on the desk now.
    """
    buttons = "".join(_recent(entry, entry.model == model) for entry in entries)
    return (
        '<section class="vq-recent"><h3>Recent models</h3>'
        f'<div class="vq-recent-list">{buttons}</div></section>'
    )


def _recent(entry: Recent, here: bool) -> str:
    missing = entry.missing
    when = moment(entry.opened) if entry.opened else "comes with VQDQ"
    state = "missing" if missing else "on the desk" if here else when
    many = f"{millions(entry.parameters)} · " if entry.parameters else ""
    return (
        f'<button type="button" class="vq-recent-model" data-act="open-model"'
        f' data-text="{escape(entry.model)}" aria-pressed="{str(here).lower()}"'
        f' data-missing="{str(missing).lower()}" title="{escape(entry.folder)}">'
        f"<b>{escape(shorten(entry.title, 40))}</b>"
        f'<span class="vq-code">{escape(shorten(entry.model, 60))}</span>'
        f"<small>{many}{escape(state)}</small></button>"
    )


def facts(found: Inventory) -> str:
    """Returns the components of a model, and its largest layers."""
    how = "From the headers of its files and its configs; no weight was read."
    pixels = " × ".join(str(side) for side in found.resolution or ())
    head = " · ".join(
        filter(
            None,
            (
                found.pipeline_class,
                f"{found.parameters / 1e6:,.0f} million parameters",
                size(found.bytes),
                f"{pixels} px" if pixels else "",
            ),
        )
    )
    rows = "".join(map(_row, found.parts))
    lacking = (
        f"<p>Missing: <b>{escape(', '.join(found.missing))}</b>. The denoiser can be planned and"
        f' compressed; to draw, they are needed. <span class="vq-muted">'
        f"{escape(found.to_complete)}</span></p>"
        if found.missing
        else ""
    )
    columns = ("Component", "Parameters", "Convolutions", "Stored as", "Size")
    cells = "".join(f'<th scope="col">{name}</th>' for name in columns)
    return (
        f'<section class="vq-model-facts"><h3>{escape(found.title)} {chip("exact", how)}</h3>'
        f'<p class="vq-muted">{escape(head)}</p>{lacking}'
        '<div class="vq-scroll" tabindex="0" role="region" aria-label="Components">'
        f'<table class="vq-numbers vq-parts"><thead><tr>{cells}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>{_largest(found)}</section>"
    )


def _broken(component: str, name: str) -> str:
    """A layer's name that a narrow page breaks after its dots."""
    return escape(f"{component}.{name}").replace(".", ".<wbr>")


def millions(number: int) -> str:
    """Returns how many parameters or weights: 0.59 M, 123 M, 2,567 M."""
    value = number / 1e6
    return f"{value:,.0f} M" if value >= 999.5 else digits(value, "M")


def _row(part: Part) -> str:
    share = 100 * part.census.convolution_share
    bar = f'<i class="vq-error" style="--share:{share:.0f}%" aria-hidden="true"></i>'
    stored = _STORED.get(part.dtype, part.dtype) or "missing"
    if part.quantized:
        stored = f"{part.quantized}"
    name = (
        f"<b>{escape(part.name)}</b><br><small>{escape(part.kind)}</small>"
        f'<small class="vq-narrow">{digits(share, "%")} convolutions, {escape(stored)}</small>'
    )
    return (
        f'<tr><th scope="row">{name}</th>'
        f"<td>{millions(part.census.parameters)}</td>"
        f"<td>{digits(share, '%')}{bar}</td><td>{escape(stored)}</td>"
        f"<td>{size(part.bytes)}</td></tr>"
    )


def _largest(found: Inventory) -> str:
    rows = "".join(
        f'<tr><th scope="row"><span class="vq-code">{_broken(layer.component, layer.name)}'
        f"</span></th><td>{' × '.join(map(str, layer.shape))}</td>"
        f"<td>{millions(layer.weights)}</td><td>{size(layer.bytes)}</td></tr>"
        for layer in found.largest
    )
    columns = ("Layer", "Shape", "Weights", "Size")
    cells = "".join(f'<th scope="col">{name}</th>' for name in columns)
    return (
        '<details class="vq-more"><summary>The largest layers</summary><div class="vq-scroll"'
        ' tabindex="0" role="region" aria-label="The largest layers">'
        '<table class="vq-numbers vq-largest">'
        f"<thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )
