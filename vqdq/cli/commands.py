"""Finds what a command does: first its request is checked (code 2), then the work is done (1)."""

from __future__ import annotations

import argparse
import importlib

from vqdq.cli.terminal import Output
from vqdq.errors import UserError
from vqdq.jobs.faults import as_user_error

_DOERS = {
    "doctor": "vqdq.cli.doctor:run",
    "methods": "vqdq.cli.methods:run",
    "describe": "vqdq.cli.describe:run",
    "import": "vqdq.cli.imports:run",
    "fit": "vqdq.cli.describe:fit",
    "plan": "vqdq.cli.recipes:plan",
    "calibrate": "vqdq.cli.recipes:calibrate",
    "compress": "vqdq.cli.recipes:run_compress",
    "generate": "vqdq.cli.draw:generate",
    "compare": "vqdq.cli.draw:compare",
    "inspect": "vqdq.cli.inspect:run",
    "blame": "vqdq.cli.blame:run",
    "grid": "vqdq.cli.grid:run",
    "sweep": "vqdq.cli.sweep:run",
    "verify": "vqdq.cli.verify:run",
    "report": "vqdq.cli.report:run",
    "export": "vqdq.cli.export:run",
    "push": "vqdq.cli.push:run",
}
"""Command -> "module:function" of (options, output) -> exit code; only one module is imported."""


def run(options: argparse.Namespace, output: Output) -> int:
    """Returns the exit code of the command in `options`."""
    module, _, name = _DOERS[options.command].partition(":")
    if getattr(options, "base", None):
        options.model = f"{options.model}@{options.base}"
    try:
        return getattr(importlib.import_module(module), name)(options, output)
    except UserError:
        raise
    except (OSError, MemoryError, RuntimeError) as error:
        fault = as_user_error(error, options.command)
        if fault is None:
            raise
        raise fault from error
