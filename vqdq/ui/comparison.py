"""A finished comparison as the page shows it: read from a run's result or from the shipped first
look.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqdq.jobs import arithmetic
from vqdq.jobs.requests import CompareRequest
from vqdq.jobs.results import ArithmeticResult
from vqdq.jobs.run import RunRecord
from vqdq.ui.viewer import Picture, swatch, viewer
from vqdq.ui.wording import chip, decibels, digits, duration, escape, file_url, shorten, size

VERDICT_WORDS = {
    "count": "number of things",
    "shapes": "shapes",
    "colours": "colours",
    "sizes": "sizes",
    "relation": "where they are",
    "background": "background",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One model's picture and what was measured on it; None where it was not.

    Attributes:
        psnr: dB against the reference, infinite for equal pictures; None on the reference itself.
        verdict: attribute -> whether the picture shows what the prompt asked for.
        verdict_reason: why there is no verdict.
        activations: what its recipe does to activations, in words.
        arithmetic: how its layers are computed; None when nothing but weights is quantized.
    """

    label: str
    image: str
    difference: str = ""
    psnr: float | None = None
    ssim: float | None = None
    bits_per_weight: float | None = None
    bytes: int | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    verdict: Mapping[str, bool] | None = None
    verdict_reason: str = ""
    activations: str = ""
    arithmetic: ArithmeticResult | None = None

    @property
    def passed(self) -> bool | None:
        """Whether everything asked for is there; None without a judge."""
        return None if self.verdict is None else all(self.verdict.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A reference and its variants, drawn from one initial latent.

    Attributes:
        run: id of the run; "" for the shipped first look.
        certificate: SHA-256 of the initial latent.
        problems: sentences about what differs and should not, or what a person should know.
    """

    run: str
    prompt: str
    seed: int
    steps: int
    guidance: float
    reference: Entry
    variants: tuple[Entry, ...]
    certificate: str = ""
    problems: tuple[str, ...] = ()


def of_run(run: RunRecord) -> Comparison:
    """Returns the comparison that a finished run holds."""
    assert isinstance(run.request, CompareRequest)
    return of_result(
        run.result or {}, run.request.to_json(), lambda name: file_url(run.folder / name), run.id
    )


def first_look(folder: Path) -> Comparison | None:
    """Returns the shipped comparison, or None when the folder holds none. Its pictures are
    inlined.
    """
    path = folder / "first-look.json"
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))

    def inline(name: str) -> str:
        data = base64.b64encode((folder / name).read_bytes()).decode()
        return f"data:image/png;base64,{data}"

    return of_result(content["result"], content["request"], inline, "")


def of_result(
    result: Mapping[str, Any], request: Mapping[str, Any], address: Callable[[str], str], run: str
) -> Comparison:
    """Returns the comparison in a result; `address` turns a picture's file name into its
    address.
    """
    entries = [_entry(row, address) for row in (result["reference"], *result["variants"])]
    certificate = result.get("certificate") or {}
    return Comparison(
        run=run,
        prompt=request["prompt"],
        seed=request["seed"],
        steps=request["steps"],
        guidance=request["guidance"],
        reference=entries[0],
        variants=tuple(entries[1:]),
        certificate=str(certificate.get("initial_latent_sha256") or ""),
        problems=(*certificate.get("problems", ()), *result.get("notices", ())),
    )


def light_table(found: Comparison, chosen: int = 0) -> str:
    """Returns the viewer of a comparison with variant `chosen` on top."""
    pictures = [
        Picture(label=entry.label, url=entry.image, colour=i, difference=entry.difference)
        for i, entry in enumerate((found.reference, *found.variants))
    ]
    return viewer(pictures[0], tuple(pictures[1:]), prompt=found.prompt, chosen=pick(found, chosen))


def pick(found: Comparison, chosen: int) -> int:
    """Returns the index of a variant that exists."""
    return chosen if 0 <= chosen < len(found.variants) else 0


def numbers(found: Comparison, chosen: int = 0) -> str:
    """Returns the table beside the pictures: the original, the variant, and what the judge says."""
    index = pick(found, chosen)
    first, second = found.reference, found.variants[index]
    measured = chip("measured", "Every number here was measured on these two pictures and files.")
    rows = (
        ("Size", size(first.bytes), size(second.bytes), "The weight file of the denoiser."),
        ("Bits a weight", digits(first.bits_per_weight), digits(second.bits_per_weight),
         "Everything counted: codes, scales, codebooks."),
        ("PSNR", decibels(first.psnr), decibels(second.psnr),
         "How close the pixels are to the original's; above 40 dB nobody sees a difference."),
        ("SSIM", digits(first.ssim), digits(second.ssim), "How close the structure is; 1: equal."),
        ("Time", duration(first.seconds), duration(second.seconds), "To draw this picture."),
        ("Memory", size(first.peak_memory_bytes), size(second.peak_memory_bytes),
         "The most the process held while it drew."),
    )  # fmt: skip
    body = "".join(
        f'<tr><th scope="row" title="{escape(how)}">{escape(name)}</th><td>{escape(a)}</td>'
        f"<td>{escape(b)}</td></tr>"
        for name, a, b, how in rows
    )
    return (
        '<div class="vq-beside"><table class="vq-numbers"><thead><tr>'
        f'<th scope="col">{measured}</th><th scope="col">{swatch(0)}{escape(first.label)}</th>'
        f'<th scope="col">{swatch(index + 1)}<span'
        f' class="vq-clip">{escape(second.label)}</span></th></tr></thead>'
        f"<tbody>{body}{_computed(first, second)}{_judged(first, second)}</tbody></table>"
        f"{_certificate(found)}</div>"
    )


def blank_numbers() -> str:
    """Returns the place of the numbers before they are there: same size, no values."""
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td>–</td><td>–</td></tr>'
        for name in ("Size", "Bits a weight", "PSNR", "SSIM", "Time", "Memory")
    )
    return (
        '<div class="vq-beside vq-blank"><table class="vq-numbers"><thead><tr><th'
        ' scope="col">Measured</th>'
        f'<th scope="col">{swatch(0)}FP16</th><th scope="col">{swatch(1)}Yours</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def caption(found: Comparison) -> str:
    """Returns the line under a light table that says what is seen."""
    return (
        f'<p class="vq-caption">The same prompt and seed, drawn twice:'
        f" <q>{escape(found.prompt)}</q>, seed"
        f" {found.seed}. Drag the divider, or press Space to flip.</p>"
    )


def _entry(row: Mapping[str, Any], address: Callable[[str], str]) -> Entry:
    verdict = row.get("verdict")
    compared = "psnr" in row
    return Entry(
        label=str(row["label"]),
        image=address(row["image"]),
        difference=address(row["error_map"]) if row.get("error_map") else "",
        psnr=(math.inf if row["psnr"] is None else row["psnr"]) if compared else None,
        ssim=row.get("ssim"),
        bits_per_weight=row.get("bits_per_weight"),
        bytes=row.get("bytes"),
        seconds=row.get("seconds"),
        peak_memory_bytes=row.get("peak_memory_bytes"),
        verdict={name: bool(verdict[name]) for name in VERDICT_WORDS} if verdict else None,
        verdict_reason=row.get("verdict_reason") or "",
        activations=row.get("activations") or "",
        arithmetic=row.get("arithmetic"),
    )


def _computed(first: Entry, second: Entry) -> str:
    """The row that says which arithmetic drew the pictures, where activations are quantized."""
    if first.arithmetic is None and second.arithmetic is None:
        return ""
    rows = [_row("Layers", _layers(first), _layers(second))]
    if any(each.arithmetic and each.arithmetic["attention_simulated"] for each in (first, second)):
        rows.append(_row("Attention", _attention(first), _attention(second)))
    return "".join(rows)


def _row(name: str, first: str, second: str) -> str:
    how = "In which arithmetic it was computed on this machine, asked of each layer."
    return f'<tr><th scope="row" title="{how}">{name}</th><td>{first}</td><td>{second}</td></tr>'


def _layers(entry: Entry) -> str:
    found = entry.arithmetic
    kinds = () if found is None else (
        ("integer", found["integer"]), ("simulated", found["simulated"])
    )  # fmt: skip
    chips = [f"{number} {chip(kind, _told(entry))}" for kind, number in kinds if number]
    return "<br>".join(chips) or "float"


def _attention(entry: Entry) -> str:
    simulated = entry.arithmetic is not None and entry.arithmetic["attention_simulated"]
    return chip("simulated", _told(entry)) if simulated else "float"


def _told(entry: Entry) -> str:
    words = "" if entry.arithmetic is None else arithmetic.in_words(entry.arithmetic)
    return f"{entry.activations}. {words}"


def _judged(first: Entry, second: Entry) -> str:
    if first.verdict is None or second.verdict is None:
        return ""
    wrong = [
        name for name in VERDICT_WORDS if not (first.verdict.get(name) and second.verdict.get(name))
    ]
    head = (
        '<tr class="vq-judged"><th scope="row" title="A rule reads the pixels and'
        " compares them with the"
        f' prompt.">Shows what was asked</th>{_yes(first.passed)}{_yes(second.passed)}</tr>'
    )
    return head + "".join(
        f'<tr class="vq-attribute"><th scope="row">{VERDICT_WORDS[name]}</th>'
        f"{_yes(first.verdict.get(name))}{_yes(second.verdict.get(name))}</tr>"
        for name in wrong
    )


def _yes(value: bool | None) -> str:
    word, kind = {True: ("yes", "good"), False: ("no", "bad"), None: ("–", "none")}[value]
    return f'<td class="vq-{kind}">{word}</td>'


def _certificate(found: Comparison) -> str:
    if found.problems:
        lines = "".join(f"<li>{escape(shorten(line, 300))}</li>" for line in found.problems)
        return f'<ul class="vq-small vq-problems">{lines}</ul>'
    if not found.certificate:
        return ""
    return (
        f'<p class="vq-small vq-muted" title="SHA-256 of the initial noise:'
        f' {escape(found.certificate)}">'
        f"Same starting noise for all: <span"
        f' class="vq-code">{escape(found.certificate[:12])}</span></p>'
    )
