"""What a blind test found: words first, then the figure, the numbers, the checks and the files."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from vqdq.durable import write_bytes, write_text
from vqdq.jobs.blind import BlindTest
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.outcome import Assessor, Comparison, Outcome
from vqdq.jobs.protocol import Protocol
from vqdq.jobs.run import write_json
from vqdq.jobs.votes import Vote, VoteStore
from vqdq.metrics.proportions import Interval
from vqdq.quantities import UNKNOWN, digits
from vqdq.spreadsheet import cell
from vqdq.ui.blind_tests import BACK, Sitting, hash_html
from vqdq.ui.blind_words import SHORT, in_words
from vqdq.ui.viewer import swatch
from vqdq.ui.wording import chip, count, escape, file_url, shorten

if TYPE_CHECKING:
    from vqdq.views.style import Style, View

FOLDER = "results"
_CONTEXT = ("seconds", "viewport", "zoom")
_SHOWN = ("number", "pair", "kind", "prompt", "seed", "a", "b", "x")


@lru_cache(maxsize=8)
def outcome(store: VoteStore, test: str) -> Outcome:
    """Returns the results of a test that was opened; kept, for they never change.

    Raises:
        UserError: it was not opened.
    """
    return BlindTest(store, test).outcome()


def colours(protocol: Protocol) -> dict[str, int]:
    """Returns the colour of each model by its name: 0 is full precision."""
    found: dict[str, int] = {}
    for entrant in protocol.entrants:
        found.setdefault(entrant.name, len(found))
    return found


def results_html(found: Sitting) -> str:
    """Returns the results of a test that was opened."""
    made = outcome(found.test.store, found.test.test)
    protocol = found.test.protocol
    lines = "".join(f"<li>{escape(line)}</li>" for line in in_words(protocol))
    return (
        f'<div class="vq-blind-results" data-shown-run="{escape(found.run.id)}">{BACK}'
        f"<h2>{escape(shorten(found.name, 80))}</h2>{_headline(protocol, made)}"
        f"{_figures(found.run.folder, protocol, made)}{_table(protocol, made)}"
        f"{_ranked(made)}{_checks(made)}{_files(found, made)}"
        f"<details><summary>The protocol, as it was fixed</summary><ul>{lines}</ul>"
        f'<p class="vq-muted">SHA-256 of the record in results.json, its secret seed included:</p>'
        f"{hash_html(found.test.test)}</details></div>"
    )


def _headline(protocol: Protocol, made: Outcome) -> str:
    """The answer to what the test is about, in the words of the statistics."""
    if made.detections:
        said = [f"{name.capitalize()}: {found.words}" for name, found in made.detections]
    elif made.thresholds:
        said = [f"{name}: {found.words}" for name, found in made.thresholds]
    else:
        main = [row for row in made.comparisons if row.question == protocol.primary]
        alone = len(main) == 1
        said = [
            row.verdict.words if alone else f"{row.first} and {row.second}: {row.verdict.words}"
            for row in main
        ]
    head = "".join(f'<p class="vq-blind-verdict">{escape(line)}</p>' for line in said)
    warned = [line for line in made.words() if line.startswith(("No obvious", "The test was"))]
    concerns = [line for person in made.assessors for line in person.concerns()]
    if concerns:
        head += (
            '<div class="vq-blind-concern" role="note"><h3>Read with care</h3>'
            + "".join(f"<p>{escape(line)}</p>" for line in concerns)
            + "</div>"
        )
    return head + "".join(f'<p class="vq-muted">{escape(line)}</p>' for line in warned)


def _table(protocol: Protocol, made: Outcome) -> str:
    if not made.comparisons:
        return ""
    marks = colours(protocol)
    heads = (
        ("Question", ""),
        ("Won", "Pairs in which the first was preferred, by majority of those who judged it"),
        ("Equal", "Ties"),
        ("Both bad", ""),
        ("Lost", "Pairs in which the second was preferred"),
        ("Win rate", "Of decided pairs; Wilson interval, by prompt where prompts repeat"),
        ("p", "Exact sign test by prompt, after Holm over all comparisons of this test"),
        ("p equally good", "Exact equivalence test with the stated margin"),
        ("Agreement", "Krippendorff's alpha between assessors: 1 is perfect, 0 is chance"),
        ("More pairs", "Until a 60 : 40 preference would be found / equality be shown, 80% power"),
    )
    top = "".join(f'<th scope="col" title="{escape(tip)}">{name}</th>' for name, tip in heads)
    body = ""
    last = ("", "")
    for row in sorted(made.comparisons, key=lambda one: (one.first, one.second)):
        if (row.first, row.second) != last:
            last = (row.first, row.second)
            body += (
                f'<tr><th colspan="{len(heads)}" scope="rowgroup">'
                f"{swatch(marks[row.first])}{escape(row.first)} against"
                f" {swatch(marks[row.second])}{escape(row.second)}</th></tr>"
            )
        body += _row(protocol, row)
    return (
        '<section class="vq-blind-numbers"><h3>Numbers</h3><div class="vq-scroll" tabindex="0"'
        ' role="region" aria-label="Numbers of the test"><table class="vq-numbers">'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
        '<p class="vq-muted vq-small">A pair counts for the side that more than half of those who'
        " judged it chose; otherwise it is equal. More pairs: to find a 60 : 40 preference / to"
        " show that both are equally good.</p></section>"
    )


def _row(protocol: Protocol, row: Comparison) -> str:
    item, tally = row.preference, row.preference.tally
    rate = item.clustered if item.repeats_prompts else item.win_rate
    agreed = row.agreement.alpha
    main = row.question == protocol.primary
    name = SHORT.get(row.question, row.question)
    cells = (
        tally.wins,
        tally.ties,
        tally.both_bad,
        tally.losses,
        interval(rate if tally.decisive else Interval(value=math.nan, low=0, high=1)),
        _p(item.adjusted),
        _p(item.p_equivalent),
        UNKNOWN if math.isnan(agreed) else f"{agreed:.2f}".replace("-", "−"),
        f"{row.verdict.pairs_to_detect:,} / {row.verdict.pairs_for_equivalence:,}",
    )
    values = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f'<tr><th scope="row">{f"<b>{name}</b>" if main else name}</th>{values}</tr>'


def interval(found: Interval) -> str:
    """Returns a share with its interval: "70% (46–88%)"."""
    if math.isnan(found.value):
        return UNKNOWN
    low, high = 100 * found.low, 100 * found.high
    return f"{100 * found.value:.0f}% ({low:.0f}–{high:.0f}%)"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _ranked(made: Outcome) -> str:
    lines = ""
    for ranking in made.rankings:
        name = SHORT.get(ranking.question, ranking.question)
        if not ranking.standings:
            lines += f"<p>{name}: no order. {escape(ranking.why.capitalize())}</p>"
            continue
        places = " · ".join(
            f"{row.rank}. {escape(row.model)} {digits(row.strength.value)}"
            f" ({digits(row.by_prompt.low)} to {digits(row.by_prompt.high)})"
            for row in ranking.standings
        )
        lines += f"<p>{name}: {places}</p>"
    if not lines:
        return ""
    tip = "Log strength by Bradley–Terry with ties (Davidson), interval by resampling prompts."
    return f"<section><h3>Order {chip('estimated', tip)}</h3>{lines}</section>"


def _checks(made: Outcome) -> str:
    """How far each assessor's answers can be believed."""
    if not made.assessors:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(person.name)}</th><td>{person.votes}</td>'
        + "".join(f"<td>{interval(share)}</td>" for share in _believed(person))
        + "</tr>"
        for person in made.assessors
    )
    return (
        '<section class="vq-blind-numbers"><h3>How far the answers can be believed</h3>'
        '<div class="vq-scroll" tabindex="0" role="region" aria-label="Checks"><table'
        ' class="vq-numbers"><thead><tr><th scope="col">Assessor</th><th scope="col">Answers</th>'
        '<th scope="col">Said “A”</th><th scope="col">Same when repeated</th><th'
        ' scope="col">One picture twice: equal</th><th scope="col">Obvious ones: seen</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div></section>"
    )


def _believed(person: Assessor) -> tuple[Interval, ...]:
    return (person.left, person.same_twice, person.identical_called_equal, person.obvious_seen)


def views(protocol: Protocol, made: Outcome, style: Style) -> dict[str, View]:
    """Returns the figures of the results by a short name."""
    from vqdq.views import votes as drawn  # heavy: matplotlib

    marks = colours(protocol)
    if made.detections:
        return {"told-apart": drawn.detections(made.detections, style)}
    if made.thresholds:
        levels = [entrant.bits for entrant in protocol.models[1:] if entrant.bits is not None]
        return {"bits": drawn.thresholds(made.thresholds, levels, style)}
    alone = len(protocol.models) == 2
    rows = [(_called(row, alone=alone), row) for row in made.comparisons]
    found = {"preferences": drawn.preferences(rows, marks, protocol.margin, style)}
    for ranking in made.rankings:
        if ranking.question == protocol.primary and ranking.standings:
            found["order"] = drawn.ranking(ranking.standings, marks, style)
    return found


def _called(row: Comparison, *, alone: bool) -> str:
    name = SHORT.get(row.question, row.question)
    return name if alone else f"{name}: {row.first} | {row.second}"


def _figures(folder: Path, protocol: Protocol, made: Outcome) -> str:
    from vqdq.views.style import PAGE

    parts = ""
    narrow = views(protocol, made, PAGE.phone())
    for name, view in views(protocol, made, PAGE).items():
        links = " ".join(
            _download(folder / FOLDER / f"{name}.{kind}", kind.upper())
            for kind in ("png", "svg", "csv")
        )
        parts += (
            f'<figure class="vq-blind-figure"><div class="vq-blind-wide">{view.svg()}</div>'
            f'<div class="vq-blind-narrow">{narrow[name].svg()}</div>'
            f"<figcaption>{escape(view.caption)} {links}</figcaption></figure>"
        )
    return parts


def _files(found: Sitting, made: Outcome) -> str:
    write_files(found, made)
    folder = found.run.folder / FOLDER
    votes = len(found.test.store.votes(found.test.test))
    return (
        f"<section><h3>Files</h3><p>{count(votes, 'vote')}:"
        f" {_download(folder / 'votes.csv', 'CSV')} · everything, the protocol with its seed"
        f" included: {_download(folder / 'results.json', 'JSON')}</p></section>"
    )


def _download(path: Path, words: str) -> str:
    return (
        f'<a class="vq-link" href="{escape(file_url(path))}" download="{escape(path.name)}">'
        f"{words}</a>"
    )


def write_files(found: Sitting, made: Outcome) -> Path:
    """Returns the folder with votes.csv, results.json and the figures, written when it is new.

    Raises:
        UserError: the disk refuses.
    """
    folder = found.run.folder / FOLDER
    if (folder / "results.json").is_file():
        return folder
    from vqdq.views.style import LIGHT

    protocol = found.test.protocol
    log = found.test.store.log(found.test.test)
    with disk_faults(folder):
        folder.mkdir(exist_ok=True)
        write_text(folder / "votes.csv", votes_csv(log))
        for name, view in views(protocol, made, LIGHT).items():
            write_bytes(folder / f"{name}.png", view.png())
            write_bytes(folder / f"{name}.svg", view.svg_file())
            write_text(folder / f"{name}.csv", view.data.to_csv())
        write_json(  # last: it says that the others are there
            folder / "results.json",
            {
                "protocol": protocol.to_json(),
                **made.to_json(),
                "votes": [json.loads(line) for line in map(_line, log)],
            },
        )
    return folder


def votes_csv(log: Sequence[Vote]) -> str:
    """Returns every vote ever given as CSV, one a line, the withdrawn ones marked."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    plain = ("id", "time", "assessor", "question", "choice", "withdrawn")
    writer.writerow((*plain, *_SHOWN, *_CONTEXT))
    for vote in log:
        values: Mapping[str, object] = json.loads(_line(vote))
        writer.writerow(cell(values.get(key, "")) for key in (*plain, *_SHOWN, *_CONTEXT))
    return buffer.getvalue()


def _line(vote: Vote) -> str:
    """One vote as flat JSON: what was shown and the moment beside the answer."""
    return json.dumps(
        {
            "id": vote.id,
            "time": datetime.fromtimestamp(vote.time, UTC).isoformat(timespec="seconds"),
            "assessor": vote.assessor,
            "question": vote.question,
            "choice": vote.choice,
            "withdrawn": vote.withdrawn,
            **vote.shown,
            **{key: vote.context[key] for key in _CONTEXT if key in vote.context},
        },
        ensure_ascii=False,
    )
