"""The numbers beside the light table: what was measured, what it means, and what its floor is."""

from __future__ import annotations

from collections.abc import Callable

from vqdq.jobs import arithmetic
from vqdq.quantities import digits, duration, size
from vqdq.ui.comparison import Apart, Comparison, Entry, Proof
from vqdq.ui.viewer import swatch
from vqdq.ui.wording import chip, count, escape, shorten

VERDICT_WORDS = {
    "count": "number of things",
    "shapes": "shapes",
    "colours": "colours",
    "sizes": "sizes",
    "relation": "where they are",
    "background": "background",
}
MEANINGS = {
    "Size": "The weight file of the denoiser, codebooks and scales counted.",
    "Bits a weight": "Everything counted that is stored for a weight: codes, scales, codebooks.",
    "PSNR": "How close the pixels are to the original's, in decibels; ∞ for equal pictures. Each"
    " 6 dB less is twice the error. It says how much changed, not whether it became worse.",
    "SSIM": "How much of the local structure is kept; 1 for equal pictures.",
    "FLIP": "How visible the differences are to a person who flips between the two pictures on a"
    " 4K screen; 0 for none, 1 for the most.",
    "Latent cosine": "How much the last latent, before it becomes pixels, points in the same"
    " direction; 1 for the same.",
    "Time": "Seconds to draw this picture, without loading the model, and without what only the"
    " first picture pays, where that is told below.",
    "Once": "Seconds more that this picture took because it was the model's first: its weights were"
    " decoded or packed, its kernels prepared. Later ones do not, while the model stays open.",
    "Memory": "The model's tensors and the most that the process took while it drew.",
    "Layers": "In which arithmetic it was computed on this machine, asked of each layer.",
    "Attention": "In which arithmetic attention was computed on this machine.",
    "Shows what was asked": "A rule reads the pixels and compares them with the prompt: number,"
    " shapes, colours, sizes, places and background must all be right.",
    "LPIPS": "Distance of the features of a network that was fitted to people's judgements; 0 for"
    " equal pictures.",
    "CLIP score": "Cosine between picture and prompt in CLIP, times 100; compare it with the"
    " original's, not with other prompts.",
    "Floor": "FP16 against itself, drawn with the denoiser's products rounded to 16 bits. A"
    " difference of this size needs no compression to appear.",
}
_EXTRAS = {"lpips": "LPIPS", "clip": "CLIP score"}
_BLANK = ("Size", "Bits a weight", "PSNR", "SSIM", "FLIP", "Latent cosine", "Time", "Memory")


def numbers(found: Comparison) -> str:
    """Returns the table beside the pictures; the script shows the column of one variant."""
    floor = None if found.floor is None else found.floor.rounding
    rows = [
        _plain(found, "Size", lambda entry: size(entry.bytes)),
        _plain(found, "Bits a weight", lambda entry: digits(entry.bits_per_weight)),
        _distance(found, "PSNR", floor, lambda each: digits(each.psnr, "dB")),
        _distance(found, "SSIM", floor, lambda each: _share(each.ssim)),
        _distance(found, "FLIP", floor, lambda each: digits(each.flip)),
        _distance(found, "Latent cosine", floor, lambda each: _share(each.latent_cosine)),
        *_extras(found),
        _plain(found, "Time", lambda entry: duration(entry.each_seconds)),
        *_once(found),
        _plain(found, "Memory", lambda entry: size(entry.peak_memory_bytes)),
        *_computed(found),
        *_judged(found),
    ]
    tips = "".join(
        f'<div popover id="{_id(name)}" class="vq-tip">{escape(words)}</div>'
        for name, words in MEANINGS.items()
    )
    return (
        f'<div class="vq-beside"><table class="vq-numbers">{_head(found)}'
        f"<tbody>{''.join(rows)}</tbody></table>{_floor_words(found)}{_notices(found)}"
        f"{_certificate(found)}{tips}</div>"
    )


def blank_numbers() -> str:
    """Returns the place of the numbers before they are there: same size, no values."""
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td>–</td><td>–</td><td>–</td></tr>' for name in _BLANK
    )
    return (
        '<div class="vq-beside vq-blank"><table class="vq-numbers"><thead><tr>'
        f'<th scope="col">Measured</th><th scope="col">{swatch(0)}FP16</th>'
        f'<th scope="col">{swatch(1)}Yours</th><th scope="col">Floor</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _head(found: Comparison) -> str:
    measured = chip("measured", "Every number here was measured on these pictures and files.")
    names = "".join(
        f'<th scope="col" class="vq-of" data-of="{i}">{swatch(i + 1)}'
        f'<span class="vq-clip">{escape(entry.label)}</span></th>'
        for i, entry in enumerate(found.variants)
    )
    return (
        f'<thead><tr><th scope="col">{measured}</th><th scope="col">{swatch(0)}'
        f"{escape(found.reference.label)}</th>{names}"
        f'<th scope="col">{_term("Floor")}</th></tr></thead>'
    )


def _row(name: str, reference: str, variants: list[str], floor: str = "", kind: str = "") -> str:
    cells = "".join(
        f'<td class="vq-of" data-of="{i}">{value}</td>' for i, value in enumerate(variants)
    )
    head = _term(name) if name in MEANINGS else escape(name)
    return (
        f'<tr class="{kind}"><th scope="row">{head}</th><td>{reference}</td>{cells}'
        f'<td class="vq-muted">{floor}</td></tr>'
    )


def _plain(found: Comparison, name: str, value: Callable[[Entry], str]) -> str:
    return _row(
        name,
        escape(value(found.reference)),
        [escape(value(entry)) for entry in found.variants],
    )


def _distance(
    found: Comparison, name: str, floor: Apart | None, value: Callable[[Apart], str]
) -> str:
    given = [entry.apart or Apart() for entry in found.variants]
    return _row(
        name,
        "",
        [f"<strong>{escape(value(each))}</strong>" for each in given],
        "–" if floor is None else escape(value(floor)),
    )


def _share(value: float | None) -> str:
    """A number whose top is 1, and what matters is how far below: 0.951, 0.99997."""
    if value is None:
        return digits(None)
    return f"{value:.3f}" if value < 0.9995 else f"{value:.5f}"


def _once(found: Comparison) -> list[str]:
    def told(entry: Entry) -> str:
        return f"+ {duration(entry.once_seconds)}" if entry.once_seconds else ""

    known = any(entry.once_seconds for entry in (found.reference, *found.variants))
    return [_plain(found, "Once", told)] if known else []


def _extras(found: Comparison) -> list[str]:
    entries = (found.reference, *found.variants)
    return [
        _plain(found, title, lambda entry, name=name: digits(entry.extras.get(name)))
        for name, title in _EXTRAS.items()
        if any(name in entry.extras for entry in entries)
    ]


def _computed(found: Comparison) -> list[str]:
    """Which arithmetic drew the pictures, where activations are quantized."""
    entries = (found.reference, *found.variants)
    if all(entry.arithmetic is None for entry in entries):
        return []
    rows = [_row("Layers", _layers(found.reference), [_layers(each) for each in found.variants])]
    if any(each.arithmetic and each.arithmetic["attention_simulated"] for each in entries):
        values = [_attention(each) for each in found.variants]
        rows.append(_row("Attention", _attention(found.reference), values))
    return rows


def _layers(entry: Entry) -> str:
    found = entry.arithmetic
    kinds = () if found is None else (
        ("integer", found["integer"]), ("fp8", found.get("fp8", 0)),
        ("simulated", found["simulated"]),
    )  # fmt: skip
    chips = [f"{number} {chip(kind, _told(entry))}" for kind, number in kinds if number]
    return "<br>".join(chips) or "float"


def _attention(entry: Entry) -> str:
    simulated = entry.arithmetic is not None and entry.arithmetic["attention_simulated"]
    return chip("simulated", _told(entry)) if simulated else "float"


def _told(entry: Entry) -> str:
    words = "" if entry.arithmetic is None else arithmetic.in_words(entry.arithmetic)
    return f"{entry.activations}. {words}"


def _judged(found: Comparison) -> list[str]:
    entries = (found.reference, *found.variants)
    if any(entry.verdict is None for entry in entries):
        return []
    head = _row(
        "Shows what was asked",
        _yes(found.reference.passed),
        [_yes(entry.passed) for entry in found.variants],
        kind="vq-judged",
    )
    wrong = [
        name
        for name in VERDICT_WORDS
        if not all(entry.verdict and entry.verdict.get(name) for entry in entries)
    ]
    return [head] + [
        _row(
            VERDICT_WORDS[name],
            _yes((found.reference.verdict or {}).get(name)),
            [_yes((entry.verdict or {}).get(name)) for entry in found.variants],
            kind="vq-attribute",
        )
        for name in wrong
    ]


def _yes(value: bool | None) -> str:
    word, kind = {True: ("yes", "good"), False: ("no", "bad"), None: ("–", "none")}[value]
    return f'<span class="vq-{kind}">{word}</span>'


def _floor_words(found: Comparison) -> str:
    """What the floor is, and how far above it each variant lies."""
    floor = found.floor
    if floor is None:
        return (
            '<p class="vq-small vq-muted">The floor was not measured: tick “Measure the floor” to'
            " see what full precision changes against itself.</p>"
        )
    again = ""
    if floor.repeat is not None:
        exact = floor.repeat.equal
        again = (
            "Drawn again, FP16 gives the same bits (∞ dB). "
            if exact
            else f"Drawn again, FP16 is {digits(floor.repeat.psnr, 'dB')} away from itself: this"
            " machine does not repeat a picture bit for bit. "
        )
    lines = "".join(
        f'<span class="vq-of" data-of="{i}">{_above(entry.apart, floor.rounding)}</span>'
        for i, entry in enumerate(found.variants)
    )
    return (
        f'<p class="vq-small vq-muted">{again}The floor is FP16 with products in'
        f" {escape(floor.dtype)}. {lines}</p>"
    )


def _above(apart: Apart | None, floor: Apart) -> str:
    if apart is None or apart.flip is None or not floor.flip:
        return ""
    times = apart.flip / floor.flip
    if times <= 1:
        return "This model changed no more than that rounding."
    return f"This model changed {digits(times)} times as much to the eye (FLIP)."


def _notices(found: Comparison) -> str:
    lines = "".join(f"<li>{escape(shorten(line, 300))}</li>" for line in found.notices)
    return f'<ul class="vq-small vq-problems">{lines}</ul>' if lines else ""


def _certificate(found: Comparison) -> str:
    """One muted line when all is equal, what differs in red when it is not; details in a fold."""
    proof = found.proof
    if not proof.noise:
        return ""
    entries = (found.reference, *found.variants)
    if proof.problems:
        lines = "".join(f"<li>{escape(shorten(line, 300))}</li>" for line in proof.problems)
        head = (
            '<div class="vq-mismatch" role="alert"><p><b>These pictures differ by more than the'
            f" model.</b></p><ul>{lines}</ul></div>"
        )
    else:
        head = ""
    title = "What was compared" if proof.problems else "Same start, same settings for all"
    rows = "".join(
        f"<tr><th scope='row'>{swatch(i)}{escape(entry.label)}</th>"
        f'<td class="vq-code">{escape(entry.noise[:12])}</td>'
        f"<td>{escape(_drawn(entry))}</td></tr>"
        for i, entry in enumerate(entries)
    )
    return (
        f'{head}<details class="vq-small vq-proof"><summary class="vq-muted">{title}'
        f' · <span class="vq-code">{escape(proof.noise[:12])}</span></summary>'
        f'<table class="vq-numbers"><thead><tr><th scope="col">Picture</th><th scope="col">Start'
        f'</th><th scope="col">Computed in</th></tr></thead><tbody>{rows}</tbody></table>'
        f"<dl>{_facts(found, proof)}</dl></details>"
    )


def _drawn(entry: Entry) -> str:
    """The arithmetic of one picture in a few words."""
    words = str(entry.setting.get("dtype", ""))
    found = entry.arithmetic
    if found is not None and found["integer"]:
        words += f", {count(found['integer'], 'layer')} integer"
    if found is not None and found.get("fp8"):
        words += f", {count(found.get('fp8', 0), 'layer')} fp8"
    if found is not None and found["simulated"]:
        words += f", {found['simulated']} simulated"
    return words or "–"


def _facts(found: Comparison, proof: Proof) -> str:
    kernels: dict[str, int] = {}
    for backend in proof.kernels.values():
        kernels[backend] = kernels.get(backend, 0) + 1
    facts = {
        "Initial latent (SHA-256)": proof.noise,
        "Scheduler": f"{proof.scheduler}, {count(found.steps, 'step')}, guidance"
        f" {digits(found.guidance)}",
        "Device": proof.device,
        "Kernels": ", ".join(f"{backend} ({number})" for backend, number in kernels.items()),
        "Versions": ", ".join(f"{name} {version}" for name, version in proof.versions.items()),
    }
    return "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items() if value
    )


def _term(name: str) -> str:
    return (
        f'<button type="button" class="vq-term" popovertarget="{_id(name)}"'
        f' title="{escape(MEANINGS[name])}">{escape(name)}</button>'
    )


def _id(name: str) -> str:
    return f"vq-means-{name.lower().replace(' ', '-')}"
