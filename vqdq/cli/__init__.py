"""The command line: the same jobs as the page's, for people and for programs (`--json`).

Exit codes: 0 done; 2 when nothing was started, because a word, a value, the recipe, the model's
name or the output is wrong; 1 when the work was started and failed (a damaged checkpoint, a
full disk); 130 after Ctrl-C. Only light modules are imported before a command runs, so that
help is immediate.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from vqdq.cli.parser import COMMANDS, build_parser
from vqdq.cli.terminal import HumanOutput, JsonOutput, WrongUse
from vqdq.errors import UserError
from vqdq.params import nearest
from vqdq.waiting import settle

# Before a hub library reads them: nothing is told to anybody.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["DO_NOT_TRACK"] = "1"
settle(os.environ)  # and before torch reads it


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of a command; see the module."""
    words = list(sys.argv[1:] if argv is None else argv)
    output = JsonOutput() if "--json" in words else HumanOutput()
    try:
        _refuse_unknown_command(words)
        parser = build_parser()
        options = parser.parse_args(words)
        if options.version:
            from importlib import metadata

            print(f"vqdq {metadata.version('vqdq')}")
            return 0
        if options.command is None:
            parser.print_help()
            return 2
        from vqdq.cli.commands import run

        return run(options, output)
    except WrongUse as error:
        output.fault(error)
        return 2
    except UserError as error:
        output.fault(error)
        return 1
    except KeyboardInterrupt as stop:
        output.fault(UserError("stopped.", remedy=str(stop) or "Nothing half-written was left."))
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _refuse_unknown_command(words: Sequence[str]) -> None:
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        raise WrongUse(
            f'unknown command "{words[0]}".', remedy=f"{nearest(words[0], COMMANDS, 'command')}"
        )
