"""The HTML file of a report: style and script inside, every word escaped, nothing fetched."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from vqdq.views.style import View

HERE = Path(__file__).parent
BUDGET_BYTES = 80_000_000
"""Of all pictures in one file; browsers and mail open no larger one gladly."""
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(kw_only=True, slots=True)
class Album:
    """Pictures that go into the file, until it is full.

    Attributes:
        left_out: pictures that there was no room for.
    """

    budget: int = BUDGET_BYTES
    left_out: int = field(default=0, init=False)
    used: int = field(default=0, init=False)

    def image(self, path: Path, label: str, extra: str = "") -> str:
        """Returns an `<img>` with the bytes of a PNG inside; a note when it is missing."""
        try:
            content = path.read_bytes()
        except OSError:
            return f'<p class="missing">{escape(label)}: the file is missing.</p>'
        if not content.startswith(_PNG):
            return f'<p class="missing">{escape(label)}: the file is no picture.</p>'
        if self.used + len(content) > self.budget:
            self.left_out += 1
            return f'<p class="missing">{escape(label)}: left out, the file would be too large.</p>'
        self.used += len(content)
        data = base64.b64encode(content).decode()
        return f'<img{extra} alt="{escape(label)}" src="data:image/png;base64,{data}">'


def document(title: str, subtitle: str, sections: Iterable[str], *, album: Album) -> str:
    """Returns the whole file."""
    style = (HERE / "page.css").read_text(encoding="utf-8")
    script = (HERE / "page.js").read_text(encoding="utf-8")
    body = "\n".join(section for section in sections if section)
    left = (
        f'<p class="missing">{album.left_out} pictures were left out to keep this file small; they'
        " lie in the folder of the run.</p>"
        if album.left_out
        else ""
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\';'
        " img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{style}</style></head><body>"
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p>{left}</header>"
        f"<main>{body}</main>"
        f"<footer>Written by VQDQ. Everything is in this file; it asks no other computer."
        f"</footer><script>{script}</script></body></html>\n"
    )


def section(heading: str, body: str) -> str:
    """Returns a part with its heading; "" for an empty one."""
    return f"<section><h2>{escape(heading)}</h2>{body}</section>" if body else ""


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: bool = True) -> str:
    """Returns a table; the first cell of a row is its header."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(str(first))}</th>'
        + "".join(f"<td>{escape(str(cell))}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    kind = ' class="numbers"' if numbers else ""
    return (
        f'<div class="scroll" tabindex="0"><table{kind}><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def facts(values: Mapping[str, object]) -> str:
    """Returns a list of names and values; empty values are left out."""
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>"
        for name, value in values.items()
        if value not in (None, "")
    )
    return f"<dl>{rows}</dl>" if rows else ""


def fold(summary: str, body: str) -> str:
    """Returns what is folded away until someone asks."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>" if body else ""


def text(words: str) -> str:
    """Returns text as it is written, in a fixed width."""
    return f'<pre tabindex="0">{escape(words)}</pre>'


def plot(view: View) -> str:
    """Returns a figure that follows light and dark."""
    words = f"<figcaption>{escape(view.caption)}</figcaption>"
    return f'<figure class="plot">{view.svg()}{words}</figure>'
