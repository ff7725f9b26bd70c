"""What the words of a command mean: sizes, cards, and one flag for each setting of a declaration.

Light: the parser is built before anything heavy is imported, so that help is immediate.
"""

from __future__ import annotations

import argparse
import math
import re

from vqdq.params import Params, describe

_UNITS = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([a-z]*)", re.IGNORECASE)


def add_settings(parser: argparse.ArgumentParser, params: type[Params]) -> None:
    """Adds one flag for each setting of `params`; a flag that is not given is None."""
    for info in describe(params):
        flag = f"--{info.name.replace('_', '-')}"
        inside = "" if info.low is None or info.high is None else f"{info.low:g} to {info.high:g}, "
        default = "" if info.default == "" else f"({inside}default {info.default})"
        words = f"{info.help or info.label} {default}".strip().replace("%", "%%")
        if info.kind is bool:
            action = argparse.BooleanOptionalAction
            parser.add_argument(flag, action=action, default=None, help=words)
        else:
            choices = list(info.choices) or None
            parser.add_argument(flag, type=info.kind, default=None, choices=choices, help=words)


BASE = "folder or hub id of the same family, for what a single file lacks (tokenizers, configs)"


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the model, and what completes it when it is a single file."""
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--base", metavar="BASE", help=BASE)


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Adds the model, the recipe, and what makes a calibrated or fitted variant of it."""
    add_model(parser)
    parser.add_argument("--recipe", required=True, help="name of a preset, or a JSON file")
    parser.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="COMPONENT=METHOD[:SETTINGS]",
        help="compress another component too, such as text_encoder=trellis:bits=4 or vae=int8"
        " (its decoder); may be given several times",
    )
    more = parser.add_argument_group("calibration and fine-tuning")
    more.add_argument(
        "--calibrate",
        nargs="?",
        type=count,
        const=0,
        metavar="PROMPTS",
        help="encode for the inputs that the layers really see, on this many prompts",
    )
    more.add_argument("--calibration", metavar="DIR", help="a folder that vqdq calibrate wrote")
    more.add_argument(
        "--finetune",
        nargs="?",
        type=count,
        const=0,
        metavar="STEPS",
        help="let the result learn from the full-precision model, for this many steps",
    )
    inputs = parser.add_argument_group("activations: what goes into the layers")
    inputs.add_argument(
        "--activations",
        metavar="METHOD[:SETTINGS]",
        help="such as dynamic:bits=8 or dgq:bits=6,groups=16, for every compressed layer; off: none"
        " (vqdq methods lists them)",
    )
    inputs.add_argument(
        "--attention",
        nargs="?",
        const="",
        metavar="SETTINGS",
        help="quantizes attention too, such as bits=6,scores=log2; off: not",
    )
    inputs.add_argument(
        "--range-prompts", type=count, metavar="PROMPTS", help="prompts that ranges are taken from"
    )
    inputs.add_argument(
        "--keep-fragile",
        type=parse_share,
        metavar="SHARE",
        help="measures the layers, and keeps the most fragile ones' inputs in 16 bits: 0.05 or 5%%",
    )
    aim = parser.add_argument_group("a target: the layers are measured, each gets its own bits")
    one = aim.add_mutually_exclusive_group()
    one.add_argument("--target-bits", type=float, metavar="BITS", help="average, such as 2.7")
    one.add_argument("--target-bytes", type=parse_size, metavar="SIZE", help="file, such as 8MB")
    one.add_argument("--card", type=parse_card, metavar="SIZE[@PIXELS]", help="such as 8GB@1024")
    aim.add_argument(
        "--sensitivity", metavar="FILE.json", help="keeps the measurement for the next time"
    )


def add_blame(parser: argparse.ArgumentParser) -> None:
    """Adds what is looked at, how closely, and which repair is written."""
    parser.add_argument(
        "--region",
        type=parse_region,
        metavar="L,T,R,B",
        help="left, top, right, bottom as shares of the picture, such as 0.1,0.2,0.5,0.6",
    )
    parser.add_argument(
        "--worst",
        type=whole,
        default=20,
        metavar="N",
        help="layers that are measured after an estimate of all; 0: every one (default 20)",
    )
    parser.add_argument(
        "--calls", type=count, default=6, metavar="N", help="steps that are measured (default 6)"
    )
    parser.add_argument("--output", metavar="DIR", help="a new folder for figures and numbers")
    repair = parser.add_argument_group("the repair that --save writes; else the one proposed")
    repair.add_argument("--save", metavar="RECIPE.json", help="write a recipe with the repair")
    repair.add_argument("--layers", type=count, metavar="N", help="repair that many layers")
    repair.add_argument("--bits", type=count, metavar="B", help="at 4, 8 or 16 bits")
    repair.add_argument(
        "--budget", type=parse_size, metavar="SIZE", help="what repairs may add, such as 500kB"
    )


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """Adds what is looked at beside the model, which layers in detail, and how it is drawn."""
    parser.add_argument(
        "--variant",
        dest="variants",
        action="append",
        default=[],
        metavar="DIR",
        help="a compressed model made of MODEL; may be given up to 4 times",
    )
    parser.add_argument(
        "--layer",
        default="",
        metavar="PATTERN",
        help='a name, a part of one, or a pattern ("mid*attn2.to_q"); at most 20 layers are shown '
        "in detail (default: the one that stands out)",
    )
    parser.add_argument(
        "--step", type=int, metavar="N", help="shown in detail, from 1 (default: the middle)"
    )
    parser.add_argument(
        "--half",
        choices=("cond", "uncond"),
        default="cond",
        help="half of the guidance that figures show: with the prompt, or without (default cond)",
    )
    parser.add_argument("--dark", action="store_true", help="figures on a dark ground")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder")


def whole(text: str) -> int:
    """Returns a whole number of at least 0.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return int(text)


def parse_region(text: str) -> tuple[float, ...]:
    """Returns the four shares in a text like "0.1,0.2,0.5,0.6".

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != 4:
        raise argparse.ArgumentTypeError(f"{text!r} is not a region like 0.1,0.2,0.5,0.6")
    return found


MODES = ("resident", "streaming", "hybrid", "integer")  # of `vqdq.layers.residency`, which is heavy


def add_mode(parser: argparse.ArgumentParser) -> None:
    """Adds where pictures are drawn, and how compressed models keep their weights there."""
    here = "where it is drawn: on the processor (default), in 32 bits, or on a graphics card, in 16"
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help=here)
    text = (
        "decoded weights: kept (default), made at each use, kept within --cache, or int8 products"
    )
    parser.add_argument("--mode", choices=MODES, default="resident", help=text)
    add_cache(parser)
    text = (
        "streaming and hybrid on a card: packed weights stay in main memory, each layer comes over"
        " one ahead; on the processor it changes nothing"
    )
    parser.add_argument("--offload", action="store_true", help=text)


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Adds the budget of the mode "hybrid"."""
    text = "what hybrid may keep decoded, such as 2GB"
    parser.add_argument("--cache", type=parse_size, metavar="SIZE", help=text)


def add_grid(parser: argparse.ArgumentParser) -> None:
    """Adds the directions of a grid, its prompts, and what stays the same in every cell."""
    parser.add_argument("model", metavar="MODEL")
    settings = "bits=16,4,3,2; seed=1-8; steps=10..30:5; method=trellis,uniform; recipe=…; model=…"
    parser.add_argument("--columns", required=True, metavar="SETTING=VALUES", help=settings)
    parser.add_argument("--rows", metavar="SETTING=VALUES", help="the same, or prompt")
    parser.add_argument("--pages", metavar="SETTING=VALUES", help="the same, for a third setting")
    words = parser.add_argument_group("prompts")
    one = words.add_mutually_exclusive_group()
    one.add_argument("--prompt", help="what every picture should show")
    one.add_argument(
        "--prompts", metavar="FILE", help="text, CSV, TSV, JSON, or the name of a built-in set"
    )
    words.add_argument("--sample", type=count, metavar="N", help="draw N of the prompts")
    words.add_argument(
        "--sample-by", choices=("category", "challenge"), help="spread them over this label"
    )
    words.add_argument("--sample-seed", type=int, default=0, help="same seed, same prompts")
    parser.add_argument("--seed", type=int, default=0, help="0 to 2^63 - 1 (default 0)")
    parser.add_argument("--steps", type=int, default=20, help="1 to 1000 (default 20)")
    parser.add_argument("--guidance", type=float, default=3.0, help="0 to 100 (default 3)")
    parser.add_argument("--method", default="trellis", help="where bits change (default trellis)")
    parser.add_argument("--bits", type=int, default=3, help="where methods change (default 3)")
    parser.add_argument("--output", required=True, metavar="DIR", help="a new or unfinished folder")
    parser.add_argument("--dry-run", action="store_true", help="say what it takes, draw nothing")


def count(text: str) -> int:
    """Returns a whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def parse_size(text: str) -> int:
    """Returns the bytes in a text like "8MB", "8 GB", "500000" or "1.5GiB".

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    found = _SIZE.fullmatch(text.strip())
    unit = 0 if found is None else _UNITS.get(found[2].lower(), 0)
    size = float(found[1]) * unit if found else 0.0
    if not unit or not math.isfinite(size):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 8MB or 1.5GB")
    return round(size)


def parse_share(text: str) -> float:
    """Returns the share in a text like "0.05" or "5%".

    Raises:
        argparse.ArgumentTypeError: it is none between 0 and 1.
    """
    number = text.removesuffix("%")
    try:
        share = float(number) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share like 0.05 or 5%")
    return share


def parse_card(text: str) -> tuple[int, int]:
    """Returns the bytes and the resolution (0: the model's own) in "8GB" or "8GB@1024".

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    memory, at, pixels = text.partition("@")
    if at and not pixels.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not like 8GB@1024")
    return parse_size(memory), int(pixels or 0)


def add_sweep(command: argparse.ArgumentParser) -> None:
    """Adds the file of a sweep, where it runs and where its results go."""
    command.add_argument("file", metavar="FILE.json", help="models, recipes, prompts, seeds, …")
    engines = "where: local (this computer) or ray (a cluster; pip install 'vqdq[cluster]')"
    command.add_argument("--engine", choices=("local", "ray"), default="local", help=engines)
    address = "of a Ray cluster; without it one is started on this computer"
    command.add_argument("--address", metavar="HOST:PORT", help=address)
    workers = "units at a time, where the cluster is started here (default: every core)"
    command.add_argument("--workers", type=int, metavar="N", help=workers)
    output = "a folder, or an address like s3://bucket/folder; goes on where it stopped"
    command.add_argument("--output", required=True, metavar="DIR|URL", help=output)
    command.add_argument("--dry-run", action="store_true", help="say what it takes, start nothing")
