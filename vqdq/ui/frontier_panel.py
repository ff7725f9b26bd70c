"""The panel of one model on the frontier: its numbers, pictures, recipe and votes."""

from __future__ import annotations

from collections.abc import Sequence

from vqdq.jobs import frontier
from vqdq.jobs.frontier import QUALITIES, Sample, Scale
from vqdq.jobs.models import ModelEntry
from vqdq.metrics.proportions import Interval
from vqdq.quantities import digits, size
from vqdq.ui import rules
from vqdq.ui.desk import Desk
from vqdq.ui.frontier_data import recipe_of
from vqdq.ui.runs_reveal import opener_command
from vqdq.ui.wording import chip, decibels, escape, file_url, shorten

MOST_CARDS = 8
NO_MODELS = (
    '<div class="vq-history-empty"><h3>No model to place yet</h3><p class="vq-muted">Compress a'
    " model, then compare it: each is a point here, by its size and its quality.</p>"
    '<button type="button" class="vq-button" data-act="start">Compress a model</button></div>'
)


def panel(
    desk: Desk,
    model: ModelEntry,
    samples: Sequence[Sample],
    blind: tuple[Interval, int] | None,
) -> str:
    """Returns everything known about one model."""
    name = escape(model.name)
    show = (
        f'<button type="button" class="vq-button" data-act="reveal-model" data-name="{name}">'
        "Show in folder</button>"
        if opener_command() is not None
        else ""
    )
    title = escape(model.title or model.name)
    return (
        f'<section class="vq-panel" aria-label="{title}"><header><div><h3>{title}</h3>'
        f'<p class="vq-muted">{name} · {size(model.measured_bytes)} ·'
        f" {digits(model.bits_per_weight)} bits a weight</p></div>"
        f'<div class="vq-actions"><button type="button" class="vq-button" data-act="compare"'
        f' data-name="{name}">Compare again</button>{show}'
        f'<button type="button" class="vq-button vq-button-quiet" data-act="point"'
        f' data-name="{name}">Close</button></div></header>'
        f"{_numbers(model, samples, blind)}{_cards(desk, samples)}{_recipe(model)}</section>"
    )


def _numbers(
    model: ModelEntry, samples: Sequence[Sample], blind: tuple[Interval, int] | None
) -> str:
    rows: list[str] = []
    for quality in QUALITIES:
        rates = {model.name: blind} if blind is not None else {}
        found = frontier.frontier(
            [model], samples, cost=frontier.COSTS[0], quality=quality, blind=rates
        )
        point = found.points[0]
        if point.quality is None:
            continue
        what = point.quality
        sure = f"{digits(what.low)} – {digits(what.high)}" if point.count > 1 else "one only"
        rows.append(
            f'<tr><th scope="row">{escape(quality.title)}</th><td>{_value(quality, what.value)}'
            f"</td><td>{sure}</td><td>{point.count}</td></tr>"
        )
    if not rows:
        return (
            '<p class="vq-muted">It was not compared with the original yet, so nothing is known'
            " about its quality.</p>"
        )
    told = chip("measured", "Over all comparisons of this model; the same picture counts once.")
    return (
        f'<table class="vq-numbers"><thead><tr><th scope="col">{told}</th><th scope="col">Value'
        '</th><th scope="col">Interval</th><th scope="col">n</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _value(quality: Scale, value: float) -> str:
    if quality.name == "psnr":
        return decibels(value)
    return digits(value, quality.unit)


def _cards(desk: Desk, samples: Sequence[Sample]) -> str:
    """Pictures of its comparisons, the one that changed most first."""
    ordered = sorted(samples, key=lambda sample: sample.values["psnr"])[:MOST_CARDS]
    cards: list[str] = []
    for sample in ordered:
        prompt, seed = sample.asked[:2]
        folder = desk.workspace.runs_folder / sample.run
        kind = "grid" if "-grid-" in sample.run else "compare"
        pictures = "".join(
            f'<img src="{escape(file_url(folder / image))}" alt="" loading="lazy">'
            for image in sample.images
            if image
        )
        cards.append(
            f'<button type="button" class="vq-card" data-act="open" data-run="{escape(sample.run)}"'
            f' data-kind="{kind}"><span class="vq-pair">{pictures}</span>'
            f"<span>{escape(shorten(str(prompt), 64))}</span><small>seed {seed} ·"
            f" {decibels(sample.values['psnr'])}</small></button>"
        )
    if not cards:
        return ""
    more = f", the {MOST_CARDS} that changed most" if len(samples) > MOST_CARDS else ""
    return f'<h4>Original and compressed{more}</h4><div class="vq-cards">{"".join(cards)}</div>'


def _recipe(model: ModelEntry) -> str:
    recipe = recipe_of(model)
    if recipe is None:
        return ""
    lines = [f"# {recipe.name} · seed {recipe.seed} · {recipe.digest[:12]}"]
    for words, params in (
        ("calibrate", recipe.calibration),
        ("finetune", recipe.finetune),
        ("attention", recipe.attention),
        ("ranges", recipe.ranges),
    ):
        if params is not None:
            told = " ".join(f"{key}={value}" for key, value in params.to_json().items())
            lines.append(f"# {words} {told}")
    lines.append(rules.render(recipe.rules))
    return (
        '<details class="vq-recipe-text"><summary>Recipe</summary>'
        f"<pre>{escape(chr(10).join(lines))}</pre></details>"
    )
