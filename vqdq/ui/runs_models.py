"""The compressed models of the workspace, with what each takes on the disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vqdq.jobs.models import ModelEntry
from vqdq.quantities import digits, size
from vqdq.ui.runs_reveal import opener_command
from vqdq.ui.wording import escape, moment

EMPTY = (
    '<div class="vq-history-empty"><h3>No compressed model yet</h3><p class="vq-muted">A'
    " compression writes a smaller copy of your model; it is listed here with its size.</p>"
    '<button type="button" class="vq-button" data-act="start">Compress a model</button></div>'
)


def table(models: Sequence[ModelEntry], sizes: Mapping[str, int]) -> str:
    """Returns a row for each model; `sizes` are the bytes of their folders."""
    if not models:
        return EMPTY
    rows = "".join(_row(model, sizes.get(model.name)) for model in models)
    return f'<div class="vq-history"><div class="vq-rows">{rows}</div></div>'


def _row(model: ModelEntry, bytes_: int | None) -> str:
    name = escape(model.name)
    instead = f" instead of {size(model.reference_bytes)}" if model.reference_bytes else ""
    facts = [
        model.title or "",
        f"{digits(model.bits_per_weight)} bits" if model.bits_per_weight else "",
    ]
    facts.append(f"of {model.model}" if model.model else "")
    note = " · ".join(filter(None, facts))
    taken = f" {size(bytes_)}" if bytes_ else ""
    quiet = "vq-button vq-button-small vq-button-quiet"
    show = (
        f'<button type="button" class="{quiet}" data-act="reveal-model" data-name="{name}">'
        "Show in folder</button>"
        if opener_command() is not None
        else ""
    )
    return (
        f'<article class="vq-run vq-run-model" data-model-row="{name}"><div class="vq-run-title">'
        f"<b>{name}</b><small>{escape(note)}</small></div>"
        f'<div class="vq-run-figure">{size(model.measured_bytes)}'
        f"<small>{escape(instead)}</small></div>"
        f'<div class="vq-run-figure">{size(bytes_)}<small>folder · {moment(model.created)}</small>'
        f'</div><div class="vq-actions"><button type="button" class="vq-button vq-button-small"'
        f' data-act="compare" data-name="{name}">Compare</button>{show}'
        f'<button type="button" class="{quiet}" data-copy="{escape(model.path)}">Copy path</button>'
        f'<button type="button" class="{quiet}" data-confirm="delete-model" data-name="{name}"'
        f' data-sure="Delete{taken} for good?">Delete</button></div></article>'
    )
