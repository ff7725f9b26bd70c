"""Measures everything and rewrites RESULTS.md: python -m benchmarks [codecs] [recipes] [studio]."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks import codecs, recipes, studio
from benchmarks.timing import machine

PARTS = {
    "codecs": (
        "Codecs",
        "One 1280 × 1280 weight, true bits per weight with scales and codebooks counted. Error is "
        "‖W−Ŵ‖²/‖W‖²; the gap is to the bound 2^(−2·bits). Encode: one run, compiled code warm; "
        "decode: median of 5.",
        codecs.run,
    ),
    "recipes": (
        "Recipes",
        "The embedded model, 24 captions that training never saw, seeds 0 to 23, 20 steps, "
        "guidance 3. PSNR and SSIM against the pictures of the 16-bit file: median (10th to 90th "
        "percentile). The first row is that file against itself. As asked: what the judge says.",
        recipes.run,
    ),
    "studio": (
        "Studio",
        "The embedded model, 20 steps. Medians with the smallest and the largest of the runs.",
        studio.run,
    ),
}


def main(chosen: list[str]) -> None:
    """Runs the chosen parts (all by default) and writes the file; other parts stay as they were."""
    path = Path(__file__).with_name("RESULTS.md")
    old = path.read_text(encoding="utf-8").split("\n## ")[1:] if path.exists() else []
    kept = {part.partition("\n")[0]: f"## {part.rstrip()}\n" for part in old}
    sections = ["# Results", "", "Rewritten by `make bench`; nothing here is typed by hand.", ""]
    for name, (title, text, run) in PARTS.items():
        if chosen and name not in chosen:
            sections += [kept[title]] if title in kept else []
        else:
            sections += [f"## {title}", "", f"Measured on {machine()}.", "", text, "", run(), ""]
    path.write_text("\n".join(sections), encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main(sys.argv[1:])
