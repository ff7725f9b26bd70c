"""A finished comparison as the page shows it: read from a run's result or from the shipped first
look.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from vqdq.jobs import batch, certificate
from vqdq.jobs.requests import CompareRequest
from vqdq.jobs.results import ArithmeticResult, Distance, PictureSet
from vqdq.jobs.run import RunRecord
from vqdq.quantities import digits
from vqdq.ui.viewer import Picture, viewer
from vqdq.ui.wording import escape, file_url

JUDGED = ("count", "shapes", "colours", "sizes", "relation", "background")


@dataclass(frozen=True, kw_only=True, slots=True)
class Apart:
    """How far a picture is from the reference's; None where it was not measured.

    Attributes:
        psnr: dB, infinite for equal pictures.
    """

    psnr: float | None = None
    ssim: float | None = None
    flip: float | None = None
    latent_cosine: float | None = None

    @property
    def equal(self) -> bool:
        """True for pictures that are equal in every bit."""
        return self.psnr == math.inf


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One model's picture and what was measured on it; None where it was not.

    Attributes:
        apart: from the reference; None on the reference itself.
        verdict: attribute -> whether the picture shows what the prompt asked for.
        verdict_reason: why there is no verdict.
        seconds: of drawing it; `once_seconds`: of these, what only the first picture of a model
            pays.
        activations: what its recipe does to activations, in words.
        arithmetic: how its layers are computed; None when nothing but weights is quantized.
        noise: SHA-256 of its initial latent; `setting`: under which it was drawn.
        extras: other measures by name.
    """

    label: str
    image: str
    difference: str = ""
    flip: str = ""
    apart: Apart | None = None
    bits_per_weight: float | None = None
    bytes: int | None = None
    seconds: float | None = None
    once_seconds: float = 0.0
    peak_memory_bytes: int | None = None
    verdict: Mapping[str, bool] | None = None
    verdict_reason: str = ""
    activations: str = ""
    arithmetic: ArithmeticResult | None = None
    noise: str = ""
    setting: Mapping[str, Any] = field(default_factory=dict[str, Any])
    extras: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def each_seconds(self) -> float | None:
        """Seconds of a picture without what only the first one pays."""
        return None if self.seconds is None else self.seconds - self.once_seconds

    @property
    def psnr(self) -> float | None:
        """dB against the reference, infinite for equal pictures; None on the reference."""
        return None if self.apart is None else self.apart.psnr

    @property
    def passed(self) -> bool | None:
        """Whether everything asked for is there; None without a judge."""
        return None if self.verdict is None else all(self.verdict.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Floor:
    """The reference against itself: drawn again in the same way, and with 16-bit rounding."""

    rounding: Apart
    dtype: str
    repeat: Apart | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """What says that only the model differs; `problems` says where it does not.

    Attributes:
        noise: SHA-256 of the reference's initial latent.
        versions, kernels: by name; empty in results of older versions.
    """

    noise: str = ""
    scheduler: str = ""
    device: str = ""
    versions: Mapping[str, str] = field(default_factory=dict[str, str])
    kernels: Mapping[str, str] = field(default_factory=dict[str, str])
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A reference and its variants, drawn from one initial latent.

    Attributes:
        run: id of the run; "" for the shipped first look.
        notices: what a person should know, a cut prompt for example.
    """

    run: str
    prompt: str
    seed: int
    steps: int
    guidance: float
    reference: Entry
    variants: tuple[Entry, ...]
    floor: Floor | None = None
    proof: Proof = field(default_factory=Proof)
    notices: tuple[str, ...] = ()


def of_run(run: RunRecord, place: int = 0) -> Comparison:
    """Returns the comparison that a finished run holds; of a batch, its set number `place`."""
    assert isinstance(run.request, CompareRequest)
    result = run.result or {}
    if run.request.is_batch:
        chosen = sets_of(run)[place]
        shown = [variant for variant in chosen["variants"] if variant is not None]
        result = {**result, **chosen, "variants": shown}
    return of_result(
        result, run.request.to_json(), lambda name: file_url(run.folder / name), run.id
    )


def sets_of(run: RunRecord) -> tuple[PictureSet, ...]:
    """Returns every set of a batch with what is drawn of it so far, also while it runs."""
    assert isinstance(run.request, CompareRequest)
    path = run.folder / batch.FILE
    stamp = path.stat().st_mtime_ns if path.is_file() else 0
    return _sets(run.folder, run.request, stamp)


@lru_cache(maxsize=16)
def _sets(folder: Path, request: CompareRequest, _stamp: int) -> tuple[PictureSet, ...]:
    return tuple(batch.read(folder, request))


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
    rows = (result["reference"], *result["variants"])
    entries = [_entry(row, address) for row in rows]
    floor = result.get("floor")
    return Comparison(
        run=run,
        prompt=result.get("prompt", request["prompt"]),
        seed=result.get("seed", request["seed"]),
        steps=request["steps"],
        guidance=request["guidance"],
        reference=entries[0],
        variants=tuple(entries[1:]),
        floor=None if floor is None else _floor(floor),
        proof=_proof(result.get("certificate") or {}, rows),
        notices=tuple(result.get("notices", ())),
    )


def light_table(found: Comparison) -> str:
    """Returns the viewer of a comparison."""
    pictures = [
        Picture(
            label=entry.label,
            url=entry.image,
            colour=i,
            difference=entry.difference,
            flip=entry.flip,
            note=_note(entry),
        )
        for i, entry in enumerate((found.reference, *found.variants))
    ]
    return viewer(pictures[0], tuple(pictures[1:]), prompt=found.prompt)


def caption(found: Comparison) -> str:
    """Returns the line under a light table that says what is seen."""
    shipped = "" if found.run else "An example that comes with the demo model. "
    return (
        f'<p class="vq-caption">{shipped}The same prompt and seed, drawn twice:'
        f" <q>{escape(found.prompt)}</q>, seed"
        f" {found.seed}. Drag the divider, or press Space to swap them.</p>"
    )


def apart(row: Mapping[str, Any] | Distance) -> Apart:
    """Returns the distance in JSON values, where None is the PSNR of equal pictures."""
    psnr = row["psnr"]
    return Apart(
        psnr=math.inf if psnr is None else psnr,
        ssim=row.get("ssim"),
        flip=row.get("flip"),
        latent_cosine=row.get("latent_cosine"),
    )


def _note(entry: Entry) -> str:
    """The number beside a variant's name."""
    if entry.apart is None:
        return ""
    if entry.apart.flip is None:
        return digits(entry.apart.psnr, "dB")
    return f"FLIP {digits(entry.apart.flip)}"


def _entry(row: Mapping[str, Any], address: Callable[[str], str]) -> Entry:
    verdict = row.get("verdict")
    return Entry(
        label=str(row["label"]),
        image=address(row["image"]),
        difference=address(row["error_map"]) if row.get("error_map") else "",
        flip=address(row["flip_map"]) if row.get("flip_map") else "",
        apart=apart(row) if "psnr" in row else None,
        bits_per_weight=row.get("bits_per_weight"),
        bytes=row.get("bytes"),
        seconds=row.get("seconds"),
        once_seconds=row.get("once_seconds") or 0.0,
        peak_memory_bytes=row.get("peak_memory_bytes"),
        verdict={name: bool(verdict[name]) for name in JUDGED} if verdict else None,
        verdict_reason=row.get("verdict_reason") or "",
        activations=row.get("activations") or "",
        arithmetic=row.get("arithmetic"),
        noise=str(row.get("initial_latent_sha256") or ""),
        setting=row.get("setting") or {},
        extras=row.get("extras") or {},
    )


def _floor(row: Mapping[str, Any]) -> Floor:
    repeat = row.get("repeat")
    return Floor(
        rounding=apart(row["rounding"]),
        dtype=str(row["dtype"]),
        repeat=None if repeat is None else apart(repeat),
    )


def _proof(stored: Mapping[str, Any], rows: tuple[Mapping[str, Any], ...]) -> Proof:
    """The stored certificate, and what the pictures themselves say against it."""
    noise = str(stored.get("initial_latent_sha256") or "")
    found = list(stored.get("problems", ()))
    if noise and noise != str(rows[0].get("initial_latent_sha256") or noise):
        found.append("The certificate names other noise than the pictures started from.")
    found += certificate.mismatches(rows)
    return Proof(
        noise=noise,
        scheduler=str(stored.get("scheduler") or ""),
        device=str(stored.get("device") or ""),
        versions=stored.get("versions") or {},
        kernels=stored.get("kernels") or {},
        problems=tuple(dict.fromkeys(found)),
    )
