"""Draws the comparison that the first screen shows: python -m benchmarks.first_look.

The embedded model, compressed to three bits, draws one example prompt beside full precision. Run
it again when the embedded model or the codec changes: `assets/first-look/` is its output.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from vqdq.demo.scenes import EXAMPLE_PROMPTS
from vqdq.jobs import compare, compress
from vqdq.jobs.requests import CompareRequest, CompressRequest
from vqdq.jobs.warm import WarmPipelines
from vqdq.models.sources import presets_folder
from vqdq.recipe import load_recipe

TARGET = Path(__file__).parents[1] / "assets" / "first-look"
PRESET, LABEL, SEED = "trellis-3bit", "Trellis 3-bit", 7
NOT_YOURS = ("seconds", "load_seconds", "peak_memory_bytes")  # true of another computer only
MADE_HERE = ("versions", "device")  # of the certificate: not worth a change in the repository


def main(prompt: str) -> None:
    """Rewrites `assets/first-look/`."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        recipe = load_recipe(PRESET, presets_folder())
        output = work / "demo-trellis-3bit"
        compress.execute(
            CompressRequest(model="demo", recipe=recipe, name=output.name, output=str(output))
        )
        pictures = work / "pictures"
        pictures.mkdir()
        request = CompareRequest(
            model="demo", variants=(str(output),), prompt=prompt, seed=SEED, floor=True
        )
        result = compare.execute(
            request, pictures, cache=WarmPipelines(lambda reference: reference)
        )
        result["variants"][0]["label"] = LABEL
        for picture in (result["reference"], *result["variants"]):
            picture["variant"] = picture["label"]
            for name in NOT_YOURS:
                picture.pop(name)
        result["images"] = {picture["variant"]: picture["image"] for picture in result["variants"]}
        if result["floor"] is not None:
            result["floor"]["seconds"] = 0.0
        kept = {k: v for k, v in result["certificate"].items() if k not in MADE_HERE}
        content = {
            "request": request.to_json() | {"variants": [LABEL]},
            "result": {**result, "certificate": kept, "seconds": None},
        }
        shutil.rmtree(TARGET, ignore_errors=True)
        shutil.copytree(pictures, TARGET)
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (TARGET / "first-look.json").write_text(text + "\n", encoding="utf-8")
    print(f"{TARGET}: PSNR {result['variants'][0]['psnr']}, seed {SEED}, {prompt!r}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else EXAMPLE_PROMPTS[0])
