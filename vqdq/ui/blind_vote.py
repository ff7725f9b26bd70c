"""Voting: two pictures, one question, five answers. Nothing here knows which model drew what.

What leaves the server is `Ballot.shown` and the sealed pictures of the present pair; a picture's
name says nothing, and all files are equally long and of one date. The script shows both pictures
at one moment, when both are decoded.
"""

from __future__ import annotations

from pathlib import Path

from vqdq.errors import UserError
from vqdq.jobs import blind, pairs
from vqdq.jobs.blind import Asked, BlindTest
from vqdq.jobs.run import RunRecord
from vqdq.ui.blind_tests import Sitting
from vqdq.ui.wording import count, escape, file_url

SEALED = "sealed"
ANSWERS = {
    "a": ("A", "←", "arrowleft a 1"),
    "equal": ("Equal", "=", "= arrowup e 2"),
    "b": ("B", "→", "arrowright b 3"),
    "both bad": ("Both bad", "↓", "arrowdown x 4"),
    "skip": ("Skip", "S", "s 5"),
}
"""By choice: what its button says, the key shown on it, and all keys that press it."""


def sealed(test: BlindTest, run: RunRecord, asked: Asked) -> dict[str, Path]:
    """Returns the sealed picture of each side that is shown now: "a", "b" and, in ABX, "x".

    Raises:
        UserError: a picture is missing or the disk refuses.
    """
    folder = run.folder / SEALED
    found: dict[str, Path] = {}
    for side, (name, picture) in zip("abx", asked.ballot.pictures, strict=False):
        path = folder / f"{name}.png"
        if not path.is_file():
            source = pairs.drawn_path(test.protocol, run.folder, picture)
            if not source.is_file():
                raise UserError(
                    "a picture of this test is missing.",
                    where="blind test",
                    remedy="Draw the test's pictures again.",
                )
            blind.seal(source, folder, name)
        found[side] = path
    return found


def head_html(found: Sitting, person: str, asked: Asked | None) -> str:
    """Returns what stands above the pictures: how far, the question, and the text asked for."""
    run = escape(found.run.id)
    standing = found.test.standing(person)
    if asked is None:
        return (
            f'<div class="vq-blind-done" data-shown-run="{run}"><h2>Thank you,'
            f" {escape(standing.name)}</h2><p>{count(standing.answered, 'answer')} are stored."
            " You can take the last one back until the results are shown.</p>"
            f'<div class="vq-actions">{_undo(run, standing.answered)}{_stop(run, "Back")}</div>'
            "</div>"
        )
    shown = asked.shown
    number, total = int(shown["number"]), int(shown["total"])
    place = f"{number} of {total}" if total else f"Trial {number}"
    questions = [question.key for question in found.test.protocol.asked]
    part = ""
    if len(questions) > 1:
        part = f" · question {questions.index(asked.question.key) + 1} of {len(questions)}"
    share = 100 * asked.answered / asked.questions if asked.questions else 0.0
    bar = (
        f'<div class="vq-track" role="progressbar" aria-label="Answered" aria-valuemin="0"'
        f' aria-valuemax="100" aria-valuenow="{share:.0f}"><i style="width:{share:.1f}%"></i></div>'
        if asked.questions
        else ""
    )
    prompt = f"<q>{escape(shown['prompt'])}</q>" if shown["prompt"] else "&nbsp;"
    return (
        f'<div class="vq-blind-head" data-shown-run="{run}"><div class="vq-blind-bar">'
        f"<span><b>{place}</b>{part} · {escape(standing.name)}</span>"
        f'<div class="vq-actions">{_undo(run, asked.answered)}{_stop(run, "Stop here")}</div></div>'
        f'{bar}<h2 id="vq-blind-question">{escape(shown["text"])}</h2>'
        f'<p class="vq-blind-prompt">{prompt}</p></div>'
    )


def pictures_html(found: Sitting, asked: Asked, paths: dict[str, Path]) -> str:
    """Returns the pictures side by side, X between A and B; hidden until all are decoded."""
    result = found.run.result or {}
    width, height = int(result.get("width", 1)), int(result.get("height", 1))
    order = [side for side in "axb" if side in paths]
    figures = "".join(
        f'<figure><div class="vq-blind-frame"><img src="{escape(file_url(paths[side]))}"'
        f' alt="Picture {side.upper()}" width="{width}" height="{height}"'
        f' draggable="false"></div><figcaption>{side.upper()}</figcaption></figure>'
        for side in order
    )
    return (
        f'<div class="vq-blind-pair" data-blind-pair="{escape(asked.ballot.token)}"'
        f' data-ready="false" data-count="{len(order)}"'
        f' style="--vq-blind-ratio:{width / height:.4f}">{figures}</div>'
    )


def answers_html(found: Sitting, person: str, asked: Asked) -> str:
    """Returns the answers with their keys."""
    common = (
        f' data-run="{escape(found.run.id)}" data-person="{escape(person)}"'
        f' data-ballot="{escape(asked.ballot.token)}"'
        f' data-question="{escape(asked.question.key)}"'
    )
    buttons = "".join(
        f'<button type="button" class="vq-button vq-blind-answer" data-act="vote"'
        f' data-choice="{choice}" data-keys="{ANSWERS[choice][2]}"{common}>'
        f"<span>{ANSWERS[choice][0]}</span><kbd>{ANSWERS[choice][1]}</kbd></button>"
        for choice in asked.shown["choices"]
    )
    return (
        '<div class="vq-blind-answers" role="group" aria-labelledby="vq-blind-question">'
        f'{buttons}</div><p class="vq-blind-keys vq-muted"><kbd>Space</kbd> or a click looks'
        " closer, <kbd>U</kbd> takes the last answer back.</p>"
    )


def _undo(run: str, answered: int) -> str:
    off = "" if answered else " disabled"
    return (
        f'<button type="button" class="vq-button vq-button-small vq-button-quiet" data-act="undo"'
        f' data-keys="u" data-run="{run}"{off}>Undo</button>'
    )


def _stop(run: str, words: str) -> str:
    return (
        '<button type="button" class="vq-button vq-button-small vq-button-quiet" data-act="stop"'
        f' data-blind-stop data-run="{run}">{words}</button>'
    )
