"""What each command does. First the request is checked (exit code 2), then the work is done (1)."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vqdq import command_plan
from vqdq.command_checks import asking, check_models, new_path
from vqdq.errors import UserError
from vqdq.jobs import arithmetic, compare, generate
from vqdq.jobs.faults import as_user_error, disk_faults
from vqdq.jobs.requests import CompareRequest, GenerateRequest
from vqdq.jobs.results import CompareResult
from vqdq.jobs.run import write_json
from vqdq.jobs.warm import WarmPipelines
from vqdq.params import ParamInfo, describe
from vqdq.terminal import Output, duration, size, table

if TYPE_CHECKING:
    from vqdq.catalog import Method


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
    from vqdq import activations, codecs
    from vqdq.activations.attention import AttentionParams
    from vqdq.catalog import activation_methods, methods

    del options
    weights: list[dict[str, Any]] = []
    lines = ["weights: --recipe", ""]
    for kind in methods():
        codec = codecs.get(kind.name)
        needs = "needed" if codec.needs_hessian else "used" if codec.uses_hessian else "not used"
        more = [f"  calibration: {needs}"]
        more += [] if kind.available else [f"  not installed: {kind.install}"]
        lines += _method_lines(kind, more)
        facts = {"available": kind.available, "install": kind.install, "calibration": needs}
        weights.append(_method_values(kind) | facts)
    inputs: list[dict[str, Any]] = []
    lines += ["activations: --activations NAME:setting=value,setting=value", ""]
    for kind in activation_methods():
        built = activations.create(kind.name)
        needs = "needed" if built.calibrated or built.smooths else "not used"
        lines += _method_lines(kind, [f"  ranges from prompts: {needs}"])
        inputs.append(_method_values(kind) | {"ranges": needs})
    lines += ["attention: --attention setting=value,setting=value", ""]
    lines += table(_setting_rows(describe(AttentionParams)))
    attention = [_setting_values(info) for info in describe(AttentionParams)]
    output.result({"methods": weights, "activations": inputs, "attention": attention}, lines)
    return 0


def _method_lines(kind: Method, more: list[str]) -> list[str]:
    head = [f"{kind.name}: {kind.title}", f"  {kind.summary}", f"  {kind.reference}"]
    return [*head, *more, *table(_setting_rows(kind.params)), ""]


def _method_values(kind: Method) -> dict[str, Any]:
    named = ("name", "title", "summary", "reference")
    values: dict[str, Any] = {name: getattr(kind, name) for name in named}
    return values | {"settings": [_setting_values(info) for info in kind.params]}


def _setting_rows(params: Sequence[ParamInfo]) -> list[tuple[str, str, str, str]]:
    rows = [("  setting", "default", "allowed", "")]
    for info in params:
        allowed = ", ".join(str(choice) for choice in info.choices)
        if not allowed and info.low is not None and info.high is not None:
            allowed = f"{info.low:g} to {info.high:g}"
        rows.append((f"  {info.name}", str(info.default), allowed, info.label))
    return rows


def _setting_values(info: ParamInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "default": info.default,
        "label": info.label,
        "help": info.help,
        "low": info.low,
        "high": info.high,
        "choices": list(info.choices),
        "reference": info.reference,
    }


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
    lines += [] if result["arithmetic"] is None else [f"  {_inputs(result)}"]
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
