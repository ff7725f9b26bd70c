"""What recording costs: pictures drawn with and without a capture, in turn."""

from __future__ import annotations

import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

import vqdq
from benchmarks.studio import PROMPT
from benchmarks.timing import table
from vqdq import capture
from vqdq.models.compressor import as_recipe, compress_folder
from vqdq.models.generate import generate
from vqdq.models.pipelines import denoiser

REPEATS = 3
NOTHING = "nothing"
Seconds = dict[str, list[tuple[float, float]]]  # wall and processor of each turn


class _Drawing:
    """One model's pictures, with any part of it recorded."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._model = denoiser(pipeline)[1]
        self._layer = capture.watchable(self._model)[20]

    def draw(self, *, layers: bool, detail: bool, attention: bool, looks: bool) -> list[Any]:
        """Returns the records of one picture."""
        tokens, empty = (capture.tokenize(self._pipeline.tokenizer, text) for text in (PROMPT, ""))
        model = self._model
        found: list[Any] = []
        with contextlib.ExitStack() as stack:
            if layers:
                chosen = (self._layer,) if detail else ()
                steps = (10,) if detail else ()
                watch = capture.record(model, detail=chosen, detail_steps=steps, guided=True)
                found += [stack.enter_context(watch)]
            if attention:
                watch = capture.record_attention(
                    model, tokens, negative=empty, self_attention=looks
                )
                found += [stack.enter_context(watch)]
            generate(self._pipeline, prompt=PROMPT, seed=7, steps=20, guidance=3.0)
        return [recorder.result() for recorder in found]


WORK: Mapping[str, Mapping[str, bool]] = {
    NOTHING: {"layers": False, "detail": False, "attention": False, "looks": False},
    "every layer": {"layers": True, "detail": False, "attention": False, "looks": False},
    "every layer, one step by channel": {
        "layers": True, "detail": True, "attention": False, "looks": False,
    },
    "cross-attention": {"layers": False, "detail": False, "attention": True, "looks": False},
    "cross- and self-attention": {
        "layers": False, "detail": False, "attention": True, "looks": True,
    },
    "all of it": {"layers": True, "detail": True, "attention": True, "looks": True},
}  # fmt: skip


def _turns(work: Mapping[str, Callable[[], object]]) -> Seconds:
    """Returns the seconds of each piece of work, the pieces taken in turn; a first turn is lost."""
    taken: Seconds = {name: [] for name in work}
    for turn in range(REPEATS + 1):
        for name, piece in work.items():
            wall, processor = time.perf_counter(), time.process_time()
            piece()
            if turn:
                both = (time.perf_counter() - wall, time.process_time() - processor)
                taken[name].append(both)
    return taken


def _rows(label: str, taken: Seconds) -> list[list[str]]:
    """Seconds beside those of drawing alone; ratios are of the same turn, then the median."""
    rows: list[list[str]] = []
    for name, turns in taken.items():
        alone = taken[NOTHING]
        walls, processors = ([turn[at] for turn in turns] for at in (0, 1))
        ratios = [
            [mine[at] / plain[at] for mine, plain in zip(turns, alone, strict=True)]
            for at in (0, 1)
        ]
        spread = [f"{statistics.median(r):.2f} ({min(r):.2f}–{max(r):.2f})" for r in ratios]
        rows.append(
            [label, name, f"{statistics.median(walls):.2f}", f"{statistics.median(processors):.2f}"]
            + (["", ""] if name == NOTHING else spread)
        )
    return rows


def _files(drawing: _Drawing) -> list[str]:
    """What a whole capture takes on the disk, and how long it is written and read."""
    records = drawing.draw(**WORK["all of it"])
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index}.npz" for index in range(len(records))]
        start = time.process_time()
        for path, record in zip(paths, records, strict=True):
            record.save(path)
        saved = time.process_time()
        for path, record in zip(paths, records, strict=True):
            type(record).load(path)
        read = time.process_time()
        size = sum(os.path.getsize(path) for path in paths)
    return [
        f"Saved: {size / 1e6:.1f} MB, written in {saved - start:.2f} s of the processor, read in "
        f"{read - saved:.2f} s."
    ]


def run() -> str:
    """Returns the table as Markdown."""
    rows: list[list[str]] = []
    before = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "w8a8"
        compress_folder("demo", as_recipe("w8a8"), small)
        drawings = {"16-bit file": _Drawing(vqdq.load("demo")), "w8a8": _Drawing(vqdq.load(small))}
        try:
            for threads in (1, 2):
                torch.set_num_threads(threads)
                for label, drawing in drawings.items():
                    work = {name: partial(drawing.draw, **kinds) for name, kinds in WORK.items()}
                    rows += _rows(f"{label}, {threads} threads", _turns(work))
        finally:
            torch.set_num_threads(before)
        notes = _files(drawings["16-bit file"])
    head = ["model", "recorded", "s", "s of the processor", "times, clock", "times, processor"]
    return "\n\n".join([table(head, rows), *notes])


if __name__ == "__main__":
    print(run())
