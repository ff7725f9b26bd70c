"""An engine for tests: "compresses" by writing seeded bytes, layer by layer, the way the real
one does.

The model's name says how it behaves: `toy-<layers>-<milliseconds a layer>`, `stuck` (one long
call that never reports, beside a process of its own), `crash` (kill -9 of itself), `fault`,
`refuse`, `full`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import time
from pathlib import Path

from vqdq.errors import UserError
from vqdq.jobs.requests import CompressRequest
from vqdq.progress import Event


class Engine:
    def __init__(self, _workspace, _warm):
        if os.environ.get("TOY_ENGINE") == "broken":
            raise RuntimeError("cannot start")

    def idle(self):
        return False

    def execute(self, request, folder, *, report):
        report(Event(stage="load", done=0, total=1))
        behave(request.model, report)
        if isinstance(request, CompressRequest):
            return compress(request, report)
        (folder / "picture.png").write_bytes(b"png")
        report(Event(stage="draw", done=1, total=1, preview=str(folder / "picture.png")))
        return {"seed": request.seed}


def behave(model, report):
    if model == "stuck":
        report(Event(stage="stuck", message=str(subprocess.Popen(["sleep", "3600"]).pid)))
        time.sleep(3600)
    if model == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if model == "fault":
        raise ValueError("a bug")
    if model == "refuse":
        raise UserError("no.", where="here", remedy="Do that.")
    if model == "full":
        raise OSError(errno.ENOSPC, "No space left on device", str(model))


def compress(request, report):
    _, layers, milliseconds = request.model.split("-")
    output = Path(request.output)
    partial = output.with_name(output.name + ".partial")
    partial.mkdir(exist_ok=True)
    fresh = 0
    for index in range(int(layers)):
        report(Event(stage="encode", done=index, total=int(layers), message=f"layer {index}"))
        path = partial / f"{index:03d}.bin"
        if path.exists():
            continue
        fresh += 1
        part = partial / "part"
        part.write_bytes(hashlib.sha256(f"{request.recipe.seed} {index}".encode()).digest())
        part.rename(path)
        time.sleep(int(milliseconds) / 1000)
    (partial / "model_index.json").write_text("{}")
    (partial / "vqdq.json").write_text('{"recipe": "toy", "bits_per_weight": 3.0}')
    partial.rename(output)
    return {"output": str(output), "fresh_layers": fresh, "bits_per_weight": 3.0}
