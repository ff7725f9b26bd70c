"""What is around the light table: the words of the embedded model, and earlier comparisons."""

from __future__ import annotations

from vqdq.demo.scenes import VOCABULARY
from vqdq.jobs.requests import CompareRequest
from vqdq.jobs.run import RunRecord
from vqdq.ui import comparison
from vqdq.ui.desk import DEFAULT_GOAL, Desk
from vqdq.ui.wording import escape, moment, shorten

GALLERY = 12


def first_model_html(desk: Desk) -> str:
    """Returns the way to a first compressed model; "" when there is one."""
    if desk.variants():
        return ""
    active = desk.workspace.active()
    if active is not None and active.kind == "compress":
        return (
            '<p class="vq-caption">Your first compressed model is being made. It will'
            " be offered here.</p>"
        )
    return (
        '<div class="vq-nothing"><h3>There is no compressed model yet</h3><p>Make a'
        " 3-bit copy first; your model stays as it is. The Compress tab says how long it takes."
        '</p><div class="vq-actions"><button type="button"'
        f' class="vq-button" data-act="first" data-goal="{DEFAULT_GOAL}">Compress to 3'
        f" bits</button></div></div>"
    )


def gallery_html(desk: Desk, shown: RunRecord | None) -> str:
    """Returns the earlier comparisons; the one on the light table is marked."""
    runs = [run for run in desk.runs("compare", 40) if run.state == "done"][:GALLERY]
    if not runs:
        return ""
    cards: list[str] = []
    for run in runs:
        found = comparison.of_run(run)
        on = str(shown is not None and shown.id == run.id).lower()
        pictures = "".join(
            f'<img src="{escape(entry.image)}" alt="" loading="lazy">'
            for entry in (found.reference, found.variants[0])
        )
        assert isinstance(run.request, CompareRequest)
        sets = len(run.request.sets)
        what = f"{sets} sets" if sets > 1 else f"seed {found.seed}"
        cards.append(
            f'<button type="button" class="vq-card" data-act="open" data-run="{escape(run.id)}"'
            f' aria-pressed="{on}"><span class="vq-pair">{pictures}</span>'
            f"<span>{escape(shorten(found.prompt, 64))}</span>"
            f"<small>{what} · {escape(found.variants[0].label)} ·"
            f" {moment(run.created)}</small></button>"
        )
    return f'<h2>Earlier comparisons</h2><div class="vq-cards">{"".join(cards)}</div>'


def words_html() -> str:
    """Returns the words of the embedded model, each a button that types it."""
    groups = "".join(
        '<span class="vq-group">'
        + "".join(
            f'<button type="button" class="vq-word"'
            f' data-word="{escape(word)}">{escape(word)}</button>'
            for word in words
        )
        + "</span>"
        for words in VOCABULARY.values()
    )
    return (
        '<div class="vq-vocabulary"><button type="button" class="vq-link"'
        ' data-act="example">Try an example'
        f'</button><span class="vq-muted">or click the words this model knows:</span>{groups}</div>'
    )
