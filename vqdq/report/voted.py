"""The report of a blind test: what was found, in words first, the protocol and every raw vote."""

from __future__ import annotations

import json
from html import escape

from vqdq.jobs.ballots import Picture
from vqdq.jobs.blind import BlindTest
from vqdq.jobs.outcome import Outcome
from vqdq.jobs.pairs import drawn_path
from vqdq.jobs.protocol import Protocol
from vqdq.jobs.requests import BlindRequest
from vqdq.jobs.run import RunRecord
from vqdq.jobs.votes import VoteStore
from vqdq.quantities import digits
from vqdq.report.content import Content
from vqdq.report.document import Album, fold, plot, section, table, text
from vqdq.ui import blind_results
from vqdq.ui.blind_words import in_words
from vqdq.views.style import PAGE


def content(run: RunRecord, request: BlindRequest, votes: VoteStore, album: Album) -> Content:
    """Returns the parts of the report.

    Raises:
        UserError: the test was not opened: a report before the end would bias who still votes.
    """
    test = BlindTest(votes, request.test)
    made, protocol = test.outcome(), test.protocol
    log = votes.log(request.test)
    words = "".join(f"<li>{escape(line)}</li>" for line in made.words())
    figures = blind_results.views(protocol, made, PAGE).values()
    fixed = "".join(f"<li>{escape(line)}</li>" for line in in_words(protocol))
    record = json.dumps(protocol.to_json(), indent=1, ensure_ascii=False)
    listed = [
        (
            vote.id,
            vote.assessor,
            vote.question,
            vote.choice,
            *(str(vote.shown.get(name, "")) for name in ("a", "b", "kind", "prompt")),
            "yes" if vote.withdrawn else "",
        )
        for vote in log
    ]
    head = ("Vote", "Assessor", "Question", "Choice", "A", "B", "Kind", "Prompt", "Taken back")
    return Content(
        title=run.name or protocol.name,
        subtitle=f"A blind test of {', '.join(entrant.name for entrant in protocol.models)}",
        sections=(
            section("What was found", f"<ul>{words}</ul>{''.join(map(plot, figures))}"),
            section("Numbers", _numbers(made)),
            section("Pictures", _pictures(run, protocol, album)),
            section(
                "The protocol, fixed before the first vote",
                f"<ul>{fixed}</ul><p>SHA-256 {request.test}</p>{fold('The record', text(record))}",
            ),
            section("Raw votes", fold(f"All {len(listed)}", table(head, listed, numbers=False))),
        ),
        rows=(),
        values={
            "test": request.test,
            "protocol": protocol.to_json(),
            "outcome": made.to_json(),
            "votes": [
                {
                    "id": vote.id,
                    "assessor": vote.assessor,
                    "question": vote.question,
                    "choice": vote.choice,
                    "shown": dict(vote.shown),
                    "context": dict(vote.context),
                    "time": vote.time,
                    "withdrawn": vote.withdrawn,
                }
                for vote in log
            ],
        },
        table=blind_results.votes_csv(log),
    )


def _numbers(made: Outcome) -> str:
    if not made.comparisons:
        return ""
    rows: list[tuple[object, ...]] = []
    for row in made.comparisons:
        found, tally = row.preference, row.preference.tally
        rows.append(
            (
                f"{row.question}: {row.first} or {row.second}",
                tally.wins,
                tally.ties + tally.both_bad,
                tally.losses,
                blind_results.interval(row.preference.win_rate),
                digits(found.p_value),
                digits(found.adjusted),
                row.verdict.words,
            )
        )
    head = ("Question", "Wins", "Ties", "Losses", "Decisive win rate", "p", "p, Holm", "In words")
    return table(head, rows, numbers=False)


def _pictures(run: RunRecord, protocol: Protocol, album: Album) -> str:
    """Every pair that was drawn, with the names that the assessors did not see."""
    cells = [protocol.cell(number) for number in range(protocol.pairs)]
    parts: list[str] = []
    for prompt, seed in cells:
        figures = ""
        for number, entrant in enumerate(protocol.models):
            path = drawn_path(
                protocol, run.folder, Picture(entrant=number, prompt=prompt, seed=seed)
            )
            kind = "variant" if number else "reference"
            figures += (
                f'<figure class="{kind}"><div class="frame">{album.image(path, entrant.name)}</div>'
                f"<figcaption><b>{escape(entrant.name)}</b></figcaption></figure>"
            )
        parts.append(f'<h3>{escape(prompt)} · seed {seed}</h3><div class="set">{figures}</div>')
    return "".join(parts)
