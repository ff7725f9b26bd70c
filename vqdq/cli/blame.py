"""`vqdq blame`: which layers cost a picture most, and the recipe that mends them."""

from __future__ import annotations

import argparse
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vqdq.cli.checks import asking, check_models, in_a_folder, new_path
from vqdq.cli.recipes import Stopped
from vqdq.cli.terminal import Output, WrongUse, table
from vqdq.durable import publish
from vqdq.errors import UserError
from vqdq.jobs import blame
from vqdq.jobs.blame_result import BlamedLayer, BlameResult, Offer
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.requests import BlameRequest
from vqdq.jobs.run import write_json
from vqdq.jobs.warm import WarmPipelines
from vqdq.places import expanded
from vqdq.quantities import duration, size

SHOWN = 20


def run(options: argparse.Namespace, output: Output) -> int:
    """Prints the ranking and the offers; writes the chosen recipe and the numbers where asked."""
    with asking():
        request = BlameRequest(
            model=options.model,
            variant=options.variant,
            prompt=options.prompt,
            seed=options.seed,
            steps=options.steps,
            guidance=options.guidance,
            region=options.region or (),
            calls=min(options.calls, options.steps),
            worst=options.worst,
        )
    wanted = _wanted(options)
    recipe = expanded(options.save).absolute() if options.save else None
    if recipe is not None:
        in_a_folder(recipe)
    target = new_path(options.output) if options.output else None
    check_models(options.model, options.variant, report=output.report)
    with _folder(target) as folder:
        try:
            result = blame.execute(
                request, folder, report=output.report, cache=WarmPipelines(), wanted=wanted
            )
        except KeyboardInterrupt:
            if target is None:
                raise
            raise Stopped(f"What is measured is in {folder}; the same command goes on.") from None
        values: dict[str, Any] = {"request": request.to_json(), **result}
        if target is not None:
            _write(folder, target, values)
            values["output"] = str(target)
    lines = in_words(result)
    chosen = _chosen(result["offers"], bool(wanted))
    if recipe is not None:
        if chosen is None:
            raise UserError(
                "no repair helps, so no recipe was written.",
                where="--save",
                remedy="The error is spread over all layers: compress with more bits.",
            )
        with disk_faults(recipe):
            write_json(recipe, chosen["recipe"])
        values |= {"saved": str(recipe), "chosen": chosen}
        lines += [
            "",
            f"{recipe} holds: {chosen['sentence']}",
            f"  vqdq compress {options.model} --recipe {options.save} --output … makes it.",
        ]
    output.result(values, lines)
    return 0


def in_words(result: BlameResult) -> list[str]:
    """Returns the lines of a result: the worst layers, then the offers."""
    region = result["region_db"]
    within = "" if region is None else f", {region:.2f} dB in the region"
    count, known = len(result["layers"]), result["measured"]
    rest = "" if known == count else f"; the other {count - known} by an estimate"
    key = "whole" if region is None else "region"
    ranked = sorted(
        (row for row in result["layers"] if row[key] is not None),
        key=lambda row: -((row[key] or {}).get("share") or 0.0),
    )
    cells = [_row(row, key) for row in ranked[:SHOWN]]
    head = ("  layer", "share", "gain", "alone", "size", "at 16 bits")
    offers = [
        f"  {'→' if each['proposed'] else ' '} {each['sentence']}" for each in result["offers"]
    ]
    return [
        f"{result['variant']}: {result['before_db']:.2f} dB in the noise prediction{within}"
        f" (measured at {len(result['steps_measured'])} steps, {duration(result['seconds'])})",
        f"  {known} of {count} layers measured both ways{rest}",
        "",
        *table([head, *cells]),
        "  gain: put back to 16 bits; alone: the reference with only this layer compressed",
        "",
        *(offers or ["  No repair helps: the error is spread over all layers."]),
    ]


def _row(row: BlamedLayer, key: str) -> tuple[str, ...]:
    found: Any = row[key]  # type: ignore[literal-required]
    return (
        f"  {row['name']}",
        _number(found["share"], 100, "%", ".1f"),
        f"{_number(found['gain_db'], 1, 'dB', '+.2f')} ± {_number(found['gain_error_db'], 1, '')}",
        _number(found["damage_db"], 1, "dB", ".1f"),
        size(row["bytes"]),
        f"{size(row['sixteen_bit_bytes'])} more",
    )


def _number(value: float | None, scale: float, unit: str, form: str = ".2f") -> str:
    return "–" if value is None else f"{scale * value:{form}} {unit}".rstrip()


def _wanted(options: argparse.Namespace) -> tuple[blame.Wanted, ...]:
    """The set of repairs that the flags ask for, if any."""
    given = (options.layers, options.bits, options.budget)
    if all(value is None for value in given):
        return ()
    if options.layers is None and options.budget is None:
        raise WrongUse(
            "nothing limits the repairs.", where="--bits", remedy="Add --layers or --budget."
        )
    return (blame.Wanted(layers=options.layers, bits=options.bits, budget_bytes=options.budget),)


def _chosen(offers: Sequence[Offer], asked: bool) -> Offer | None:
    """What was asked for comes first; else the one that is proposed."""
    if asked:
        return offers[0]
    return next((each for each in offers if each["proposed"]), None)


@contextmanager
def _folder(target: Path | None) -> Generator[Path]:
    """Lends the folder of the measurement: it stays where `--output` lets a second call go on."""
    if target is None:
        with TemporaryDirectory(prefix="vqdq-blame-") as name:
            yield Path(name)
        return
    partial = target.with_name(f"{target.name}.partial")
    with disk_faults(target):
        partial.mkdir(exist_ok=True)
    yield partial


def _write(partial: Path, target: Path, values: dict[str, Any]) -> None:
    """Writes the numbers and the figures, then gives the folder its name."""
    from vqdq.models.blame_report import BlameReport
    from vqdq.views import blame as views
    from vqdq.views.style import LIGHT

    found = BlameReport.load(partial / blame.REPORT)
    with disk_faults(target):
        write_json(partial / "report.json", values)
        for name, view in views.figures(found, values["offers"], LIGHT).items():
            (partial / f"{name}.png").write_bytes(view.png())
            (partial / f"{name}.svg").write_bytes(view.svg_file())
            (partial / f"{name}.csv").write_text(view.data.to_csv(), encoding="utf-8")
        publish(partial, target)
