"""`vqdq generate` and `vqdq compare`: pictures from a model and its variants."""

from __future__ import annotations

import argparse
import shutil
from typing import Any

from vqdq.cli import compare_page
from vqdq.cli.checks import asking, check_models, new_path
from vqdq.cli.terminal import Output, duration, size, table
from vqdq.errors import UserError
from vqdq.jobs import arithmetic
from vqdq.jobs import compare as comparing
from vqdq.jobs import generate as generating
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.requests import CompareRequest, GenerateRequest
from vqdq.jobs.results import CompareResult
from vqdq.jobs.run import write_json
from vqdq.jobs.warm import WarmPipelines


def generate(options: argparse.Namespace, output: Output) -> int:
    """Draws one picture into a new file."""
    with asking():
        request = GenerateRequest(model=options.model, **_sampling(options))
        if not options.output.lower().endswith(".png"):
            raise UserError("is not a PNG.", where=options.output, remedy="Name a new FILE.png.")
    target = new_path(options.output)
    check_models(options.model)
    cache = WarmPipelines()
    folder = target.parent
    result = generating.execute(
        request, folder, report=output.report, cache=cache, name=target.name
    )
    values = result | {"output": str(target)}
    lines = [str(target), f"  {duration(result['seconds'])}, {_verdict(result)}"]
    lines += [] if result["arithmetic"] is None else [f"  {_inputs(result)}"]
    output.result(values, [*lines, *([f"  {result['notice']}"] if result["notice"] else [])])
    return 0


def compare(options: argparse.Namespace, output: Output) -> int:
    """Draws one picture with each model into a new folder."""
    with asking():
        request = CompareRequest(
            model=options.model, variants=tuple(options.variants), **_sampling(options)
        )
    target = new_path(options.output)
    check_models(options.model, *options.variants)
    part = target.with_name(f".{target.name}.part")
    with disk_faults(target):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
    try:
        result = comparing.execute(request, part, report=output.report, cache=WarmPipelines())
        report = {"request": request.to_json(), **result}
        with disk_faults(target):
            write_json(part / "report.json", report)
            (part / "index.html").write_text(compare_page.html(result, part), encoding="utf-8")
            part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    output.result(report | {"output": str(target)}, [str(target), *_compared(result)])
    return 0


def _compared(result: CompareResult) -> list[str]:
    rows = [("  picture", "PSNR", "SSIM", "time", "size", "judge")]
    rows.append(("  " + result["reference"]["label"], "", "", *_costs(result["reference"])))
    for picture in result["variants"]:
        psnr = "equal" if picture["psnr"] is None else f"{picture['psnr']:.2f} dB"
        rows.append(("  " + picture["label"], psnr, f"{picture['ssim']:.4f}", *_costs(picture)))
    given = [
        f"  {each['label']}: {_inputs(each)}" for each in result["variants"] if each["arithmetic"]
    ]
    problems = [f"  ! {problem}" for problem in result["certificate"]["problems"]]
    return [*table(rows), *given, *problems, "  index.html shows them side by side."]


def _inputs(picture: Any) -> str:
    return f"{picture['activations']}. {arithmetic.in_words(picture['arithmetic'])}"


def _costs(picture: Any) -> tuple[str, str, str]:
    return duration(picture["seconds"]), size(picture["bytes"]), _verdict(picture)


def _verdict(picture: Any) -> str:
    if picture["verdict"] is None:
        return "not judged"
    wrong = [name for name, fine in picture["verdict"].items() if not fine and name != "passed"]
    return f"wrong: {', '.join(wrong)}" if wrong else "shows what was asked"


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    names = ("prompt", "seed", "steps", "guidance")
    return {name: getattr(options, name) for name in names}
