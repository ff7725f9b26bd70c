"""What each command does. First the request is checked (exit code 2), then the work is done (1)."""

from __future__ import annotations

import argparse
import shutil
from typing import Any

from vqdq import command_plan
from vqdq.command_checks import asking, check_models, new_path
from vqdq.errors import UserError
from vqdq.jobs import compare, generate
from vqdq.jobs.faults import as_user_error, disk_faults
from vqdq.jobs.requests import CompareRequest, GenerateRequest
from vqdq.jobs.results import CompareResult
from vqdq.jobs.run import write_json
from vqdq.jobs.warm import WarmPipelines
from vqdq.terminal import Output, duration, size, table


def run(options: argparse.Namespace, output: Output) -> int:
    """Returns the exit code of the command in `options`."""
    from vqdq import doctor

    known = {
        "doctor": doctor.run,
        "methods": _methods,
        "plan": command_plan.plan,
        "calibrate": command_plan.calibrate,
        "compress": command_plan.run_compress,
        "generate": _generate,
        "compare": _compare,
        "verify": _verify,
    }
    try:
        return known[options.command](options, output)
    except UserError:
        raise
    except (OSError, MemoryError, RuntimeError) as error:
        fault = as_user_error(error, options.command)
        if fault is None:
            raise
        raise fault from error


def _methods(options: argparse.Namespace, output: Output) -> int:
    from vqdq import codecs
    from vqdq.catalog import methods

    del options
    found: list[dict[str, Any]] = []
    lines: list[str] = []
    for kind in methods():
        settings: list[dict[str, Any]] = []
        rows = [("  setting", "default", "allowed", "")]
        for info in kind.params:
            allowed = ", ".join(str(choice) for choice in info.choices)
            if not allowed and info.low is not None and info.high is not None:
                allowed = f"{info.low:g} to {info.high:g}"
            rows.append((f"  {info.name}", str(info.default), allowed, info.label))
            settings.append(
                {
                    "name": info.name,
                    "default": info.default,
                    "label": info.label,
                    "help": info.help,
                    "low": info.low,
                    "high": info.high,
                    "choices": list(info.choices),
                    "reference": info.reference,
                }
            )
        codec = codecs.get(kind.name)
        calibration = (
            "needed" if codec.needs_hessian else "used" if codec.uses_hessian else "not used"
        )
        lines += [f"{kind.name}: {kind.title}", f"  {kind.summary}", f"  {kind.reference}"]
        lines += [f"  calibration: {calibration}"]
        lines += [] if kind.available else [f"  not installed: {kind.install}"]
        lines += [*table(rows), ""]
        found.append(
            {
                "name": kind.name,
                "title": kind.title,
                "summary": kind.summary,
                "reference": kind.reference,
                "available": kind.available,
                "install": kind.install,
                "calibration": calibration,
                "settings": settings,
            }
        )
    output.result({"methods": found}, lines[:-1])
    return 0


def _generate(options: argparse.Namespace, output: Output) -> int:
    with asking():
        request = GenerateRequest(model=options.model, **_sampling(options))
        if not options.output.lower().endswith(".png"):
            raise UserError("is not a PNG.", where=options.output, remedy="Name a new FILE.png.")
    target = new_path(options.output)
    check_models(options.model)
    cache = WarmPipelines()
    folder = target.parent
    result = generate.execute(request, folder, report=output.report, cache=cache, name=target.name)
    values = result | {"output": str(target)}
    lines = [str(target), f"  {duration(result['seconds'])}, {_verdict(result)}"]
    output.result(values, [*lines, *([f"  {result['notice']}"] if result["notice"] else [])])
    return 0


def _compare(options: argparse.Namespace, output: Output) -> int:
    from vqdq import compare_page

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
        result = compare.execute(request, part, report=output.report, cache=WarmPipelines())
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
    problems = [f"  ! {problem}" for problem in result["certificate"]["problems"]]
    return [*table(rows), *problems, "  index.html shows them side by side."]


def _costs(picture: Any) -> tuple[str, str, str]:
    return duration(picture["seconds"]), size(picture["bytes"]), _verdict(picture)


def _verdict(picture: Any) -> str:
    if picture["verdict"] is None:
        return "not judged"
    wrong = [name for name, fine in picture["verdict"].items() if not fine and name != "passed"]
    return f"wrong: {', '.join(wrong)}" if wrong else "shows what was asked"


def _verify(options: argparse.Namespace, output: Output) -> int:
    from vqdq.models import checkpoint, sources

    with asking():
        source = sources.locate(options.folder)
        if not source.is_quantized:
            raise UserError(
                "is not compressed.",
                where=options.folder,
                remedy="Name a folder that `vqdq compress` wrote.",
            )
    found = checkpoint.verify(options.folder, report=output.report)
    values = {
        "folder": str(found.folder),
        "ok": found.ok,
        "files": found.files,
        "layers": found.layers,
        "problems": list(found.problems),
    }
    what = f"{found.files} files and {found.layers} layers checked"
    if found.ok:
        output.result(values, [f"{options.folder}: in order, {what}."])
        return 0
    count = len(found.problems)
    lines = [f"{options.folder}: {count} problem{'s' if count > 1 else ''}, {what}."]
    output.result(values, [*lines, *(f"  {problem}" for problem in found.problems)])
    return 1


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    names = ("prompt", "seed", "steps", "guidance")
    return {name: getattr(options, name) for name in names}
