"""One HTML file that shows a comparison anywhere: pictures inside, nothing fetched, no script
needed.
"""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

from vqdq.cli.terminal import duration, size
from vqdq.jobs import arithmetic
from vqdq.jobs.results import CompareResult

_STYLE = """
:root{color-scheme:light dark;--page:#f7f8fa;--text:#14181f;--muted:#566070;--line:#d9dee6}
@media (prefers-color-scheme:dark){
:root{--page:#0e1116;--text:#e6e9ee;--muted:#9aa4b2;--line:#2a313c}}
body{margin:0 auto;max-width:1200px;padding:32px 24px;background:var(--page);color:var(--text);
font:15px/1.5 system-ui,sans-serif;font-variant-numeric:tabular-nums}
h1{font-size:20px;font-weight:600}p,dt,footer{color:var(--muted)}
main{display:grid;grid-template-columns:repeat(auto-fit,minmax(260px,1fr));gap:24px}
figure{margin:0}img{width:100%;image-rendering:auto;border:1px solid var(--line)}
figcaption{font-weight:600;margin:8px 0}
dl{display:grid;grid-template-columns:auto 1fr;gap:2px 16px;margin:0}dd{margin:0}
footer{margin-top:32px;border-top:1px solid var(--line);padding-top:16px;font-size:13px}
"""


def html(result: CompareResult, folder: Path) -> str:
    """Returns the page; pictures are read from `folder`."""
    prompt = escape(result["prompt"])
    figures = [_figure(result["reference"], folder)]
    figures += [_figure(picture, folder) for picture in result["variants"]]
    proof = result["certificate"]
    same = "the same noise" if proof["same_start"] else "DIFFERENT noise"
    problems = "".join(f"<p>{escape(problem)}</p>" for problem in proof["problems"])
    versions = ", ".join(f"{name} {version}" for name, version in proof["versions"].items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{prompt}</title>'
        f"<style>{_STYLE}</style><h1>{prompt}</h1>"
        f"<p>seed {result['seed']} · {result['steps']} steps · guidance {result['guidance']:g}</p>"
        f"<main>{''.join(figures)}</main>"
        f"<footer>All pictures started from {same} "
        f"(SHA-256 {proof['initial_latent_sha256'][:16]}…), "
        f"scheduler {escape(proof['scheduler'])}, on {escape(proof['device'])}. "
        f"{escape(versions)}.{problems}</footer></html>\n"
    )


def _figure(picture: Any, folder: Path) -> str:
    facts = [("time", duration(picture["seconds"])), ("weights", size(picture["bytes"]))]
    if "psnr" in picture:
        psnr = "equal pictures" if picture["psnr"] is None else f"{picture['psnr']:.2f} dB"
        facts = [("PSNR", psnr), ("SSIM", f"{picture['ssim']:.4f}"), *facts]
    if picture["arithmetic"] is not None:
        facts.append(("activations", picture["activations"]))
        facts.append(("layers", arithmetic.in_words(picture["arithmetic"])))
    if picture["verdict"] is not None:
        wrong = [key for key, fine in picture["verdict"].items() if not fine and key != "passed"]
        facts.append(("judge", f"wrong: {', '.join(wrong)}" if wrong else "shows what was asked"))
    rows = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    shown = _image(folder / picture["image"], picture["label"])
    if "error_map" in picture:
        what = f"where {picture['label']} differs"
        error = _image(folder / picture["error_map"], what)
        shown += f"<details><summary>difference</summary>{error}</details>"
    name = escape(picture["label"])
    return f"<figure>{shown}<figcaption>{name}</figcaption><dl>{rows}</dl></figure>"


def _image(path: Path, label: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(label)}" src="data:image/png;base64,{data}">'
