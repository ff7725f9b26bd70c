"""The words of the command line: every command with its flags, told in one place.

Light: `vqdq --help` answers at once, because nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import argparse
from typing import NoReturn

import vqdq.cli.flags as flags
from vqdq.calibration import CalibrationParams
from vqdq.cli.terminal import WrongUse

COMMANDS = (
    "doctor", "methods", "describe", "fit", "import", "plan", "calibrate", "compress", "generate",
    "compare", "inspect", "blame", "grid", "sweep", "verify", "export", "push", "report",
)  # fmt: skip

EXAMPLES = """examples:
  vqdq plan demo --recipe trellis-3bit
  vqdq compress demo --recipe trellis-3bit --output small
  vqdq compress demo --recipe trellis-3bit --calibrate --finetune --output better
  vqdq plan demo --recipe trellis-3bit --target-bits 2.7
  vqdq compress demo --recipe w8a8 --output fast
  vqdq compress demo --recipe trellis-4bit --activations dgq:bits=6 --attention --output studied
  vqdq compare demo small --prompt "a large red circle on a plain navy background" --output seen
  vqdq blame demo small --prompt "a large red circle on a plain navy background" --save mended.json
  vqdq inspect demo --variant small --prompt "a small red circle" --layer "mid*" --output look
  vqdq grid demo --columns bits=16,4,3,2 --rows prompt --prompts "demo examples" --output grid
  vqdq sweep sweep.json --engine ray --output swept
  vqdq generate small --prompt "a small yellow star on a dotted mint background" --output star.png
  vqdq verify small
  vqdq report seen --output seen.html

MODEL is "demo" (the embedded model), the folder of a diffusers pipeline, a single .safetensors
checkpoint, or a hub id; owner/name@revision pins one, FILE.safetensors@BASE completes one.
A recipe is the name of a preset (vq-3bit, trellis-3bit, w3a8-trellis, …) or a JSON file.

exit codes: 0 done · 1 the work failed · 2 nothing was started: wrong use · 130 Ctrl-C"""


class _Parser(argparse.ArgumentParser):
    """Raises instead of ending the process, so that `main` answers in one way."""

    def error(self, message: str) -> NoReturn:
        raise WrongUse(f"{message}.", where=self.prog, remedy=f"See {self.prog} --help.")


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    parser = _Parser(
        prog="vqdq",
        description="Compress text-to-image diffusion models, and see what it costs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("--json", action="store_true", help="one JSON object a line")
        return added

    def drawing(added: argparse.ArgumentParser, *, many: bool = False) -> None:
        words = added.add_mutually_exclusive_group(required=True) if many else added
        words.add_argument("--prompt", required=not many, help="what the picture should show")
        if many:
            files = "at most 50 prompts: text, CSV, TSV or JSON"
            words.add_argument("--prompts", metavar="FILE", help=files)
        added.add_argument("--seed", type=int, default=0, help="0 to 2^63 - 1 (default 0)")
        added.add_argument("--steps", type=int, default=20, help="1 to 1000 (default 20)")
        added.add_argument("--guidance", type=float, default=3.0, help="0 to 100 (default 3)")

    doctor = command("doctor", "Look at this installation: versions, device, kernels, demo model.")
    doctor.add_argument("--warm", action="store_true", help="compile all kernels now")
    doctor.add_argument("--workspace", default="workspace", help="folder to check")
    doctor.add_argument("--port", type=int, default=7860, help="that the studio will use")
    words = "write what who helps needs, without prompts, names and paths"
    doctor.add_argument("--bundle", metavar="FILE.zip", help=words)
    command("methods", "List the methods, their settings, and how to get those not installed.")
    describe = command(
        "describe", "Say what a model is made of: components, weights, largest layers."
    )
    flags.add_model(describe)
    bring = command("import", "Make a diffusers folder of a single .safetensors checkpoint.")
    bring.add_argument("file", metavar="FILE.safetensors")
    bring.add_argument("--base", dest="completing", metavar="BASE", help=flags.BASE)
    bring.add_argument("--output", metavar="DIR", help="a new folder (default: kept in the cache)")
    fit = command("fit", "Find the recipes that fit a graphics card, best first; estimated.")
    flags.add_model(fit)
    fit.add_argument("--card", metavar="SIZE", help="such as 8GB (default: the card that is here)")
    fit.add_argument("--resolution", type=int, metavar="PIXELS", help="default: the model's own")
    plan = command("plan", "Say exactly what a recipe makes of a model, before any work.")
    flags.add_recipe(plan)
    plan.add_argument("--layers", action="store_true", help="list every layer")
    flags.add_cache(plan)
    plan.add_argument("--save", metavar="FILE.json", help="write the recipe with its bits by layer")
    calibrate = command("calibrate", "Run a model on prompts and keep what its layers see.")
    flags.add_model(calibrate)
    calibrate.add_argument("--output", required=True, metavar="DIR", help="a new folder")
    flags.add_settings(calibrate, CalibrationParams)
    compress = command("compress", "Compress a model into a new folder; resumes by itself.")
    flags.add_recipe(compress)
    compress.add_argument("--output", required=True, metavar="DIR", help="a new folder")
    generate = command("generate", "Draw one picture.")
    generate.add_argument("model", metavar="MODEL")
    drawing(generate)
    flags.add_mode(generate)
    generate.add_argument("--output", required=True, metavar="FILE.png", help="a new file")
    compare = command("compare", "Draw the same picture with a model and its variants.")
    compare.add_argument("model", metavar="MODEL")
    compare.add_argument("variants", metavar="VARIANT", nargs="+", help="compressed models")
    drawing(compare, many=True)
    flags.add_mode(compare)
    floor = "measure MODEL against itself: drawn again, and with 16-bit rounding"
    compare.add_argument("--floor", action="store_true", help=floor)
    compare.add_argument("--output", required=True, metavar="DIR", help="a new folder")
    inspect = command("inspect", "Look into the layers and the attention while a picture is drawn.")
    inspect.add_argument("model", metavar="MODEL")
    drawing(inspect)
    flags.add_inspect(inspect)
    blame = command("blame", "Find the layers that cost a picture most, and what mends them.")
    blame.add_argument("model", metavar="MODEL")
    blame.add_argument("variant", metavar="VARIANT", help="a compressed model made of it")
    drawing(blame)
    flags.add_blame(blame)
    grid = command("grid", "Draw a picture for each pair of settings; goes on where it stopped.")
    flags.add_grid(grid)
    sweep = command("sweep", "Draw recipes × prompts × seeds × models, on one computer or many.")
    flags.add_sweep(sweep)
    verify = command("verify", "Check a compressed folder: checksums, sizes, every weight.")
    verify.add_argument("folder", metavar="DIR")
    export = command("export", "Decode a compressed folder for programs that do not know vqdq.")
    export.add_argument("folder", metavar="DIR")
    export.add_argument("--output", required=True, metavar="PATH", help="a new folder or file")
    export.add_argument(
        "--format",
        default="diffusers-fp16",
        help="diffusers-fp16 (default, a folder), single-file (.safetensors in the layout of the "
        "model's authors), gguf-f16, gguf-q8_0, gguf-q5_1, gguf-q5_0, gguf-q4_1, gguf-q4_0 (.gguf)",
    )
    push = command("push", "Send a compressed folder to the hub, with its card.")
    push.add_argument("folder", metavar="DIR")
    push.add_argument("name", metavar="OWNER/NAME")
    push.add_argument("--private", action="store_true", help="create it for your eyes only")
    push.add_argument("--revision", metavar="BRANCH", help="a branch (default main)")
    push.add_argument("--base-model", metavar="OWNER/NAME", help="for the card, if it has none")
    push.add_argument("--dry-run", action="store_true", help="check, and say what would be sent")
    report = command("report", "Write a comparison, a grid or a blind test as one HTML file.")
    report.add_argument("run", metavar="RUN", help="a run of the workspace, or its folder")
    report.add_argument("--output", metavar="FILE.html", help="a new file; CSV and JSON beside it")
    report.add_argument("--workspace", default="workspace", help="folder of the runs")
    report.add_argument("--card", action="store_true", help="RUN is a model: measure its card")
    return parser
