"""What each command does. First the request is checked (exit code 2), then the work is done (1)."""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vqdq.errors import UserError
from vqdq.jobs import compare, compress, generate
from vqdq.jobs.faults import as_user_error, disk_faults
from vqdq.jobs.requests import CompareRequest, CompressRequest, GenerateRequest
from vqdq.jobs.results import CompareResult, CompressResult
from vqdq.jobs.run import write_json
from vqdq.jobs.warm import WarmPipelines
from vqdq.terminal import Output, WrongUse, duration, size, table

if TYPE_CHECKING:
    from vqdq.recipe import Plan


def run(options: argparse.Namespace, output: Output) -> int:
    """Returns the exit code of the command in `options`."""
    from vqdq import doctor

    known = {
        "doctor": doctor.run,
        "methods": _methods,
        "plan": _plan,
        "compress": _compress,
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


@contextmanager
def _asking() -> Generator[None]:
    """What fails in here fails before any work: it is wrong use."""
    try:
        yield
    except UserError as error:
        raise WrongUse(error.what, where=error.where, remedy=error.remedy) from error


def _methods(options: argparse.Namespace, output: Output) -> int:
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
        lines += [f"{kind.name}: {kind.title}", f"  {kind.summary}", f"  {kind.reference}"]
        lines += [*table(rows), ""]
        found.append(
            {
                "name": kind.name,
                "title": kind.title,
                "summary": kind.summary,
                "reference": kind.reference,
                "settings": settings,
            }
        )
    output.result({"methods": found}, lines[:-1])
    return 0


def _checked_plan(model: str, recipe_name: str) -> Plan:
    """The plan; a damaged model is a failure, everything else wrong use."""
    from vqdq.models import compressor, pipelines, sources

    with _asking():
        recipe = compressor.as_recipe(recipe_name)
        sources.locate(model)
    pipelines.component(model)
    with _asking():
        return compressor.plan(model, recipe)


def _plan(options: argparse.Namespace, output: Output) -> int:
    plan = _checked_plan(options.model, options.recipe)
    rows = [
        {
            "name": item.layer.name,
            "method": item.method,
            "bits_per_weight": item.bits_per_weight,
            "bytes": item.storage.total_bytes,
        }
        for item in plan.layers
    ]
    values = {
        "model": options.model,
        "component": plan.component.name,
        "recipe": plan.recipe.to_json(),
        "recipe_digest": plan.recipe.digest,
        "predicted_bytes": plan.predicted_bytes,
        "reference_bytes": plan.reference_bytes,
        "bits_per_weight": plan.bits_per_weight,
        "model_bits_per_weight": plan.model_bits_per_weight,
        "quantized_layers": len(plan.quantized),
        "layers": rows,
    }
    lines = [
        f"{options.model}, {plan.component.name}, with {plan.recipe.name}",
        f"  {len(plan.quantized)} of {len(plan.layers)} layers, "
        f"{plan.bits_per_weight:.3f} bits a weight in them, "
        f"{plan.model_bits_per_weight:.3f} over everything",
        f"  {size(plan.predicted_bytes)} instead of {size(plan.reference_bytes)}"
        f" ({plan.predicted_bytes:,} bytes)",
    ]
    if options.layers:
        cells = [
            (
                item.layer.name,
                item.method or "16-bit",
                f"{item.bits_per_weight:.3f}",
                size(item.storage.total_bytes),
            )
            for item in plan.layers
        ]
        lines += ["", *table([("layer", "method", "bits", "size"), *cells])]
    output.result(values, lines)
    return 0


def _compress(options: argparse.Namespace, output: Output) -> int:
    target = _new_path(options.output)
    plan = _checked_plan(options.model, options.recipe)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", target.name).strip(".-")[:64] or "model"
    with _asking():
        request = CompressRequest(
            model=options.model, recipe=plan.recipe, name=name, output=str(target)
        )
    partial = target.with_name(f"{target.name}.partial")
    try:
        result: CompressResult = compress.execute(request, report=output.report)
    except KeyboardInterrupt:
        if partial.exists():
            raise _Stopped(f"Finished layers are in {partial}; the same command goes on.") from None
        raise
    lines = [
        f"{result['output']}",
        f"  {size(result['measured_bytes'])} instead of {size(result['reference_bytes'])}, "
        f"{result['bits_per_weight']:.3f} bits a weight",
        f"  {duration(result['seconds'])}, at most {size(result['peak_memory_bytes'])} of memory",
    ]
    output.result(cast(dict[str, Any], result), lines)
    return 0


class _Stopped(KeyboardInterrupt):
    """Ctrl-C with something to say."""


def _generate(options: argparse.Namespace, output: Output) -> int:
    with _asking():
        request = GenerateRequest(model=options.model, **_sampling(options))
        if not options.output.lower().endswith(".png"):
            raise UserError("is not a PNG.", where=options.output, remedy="Name a new FILE.png.")
    target = _new_path(options.output)
    _check_models(options.model)
    cache = WarmPipelines()
    folder = target.parent
    result = generate.execute(request, folder, report=output.report, cache=cache, name=target.name)
    values = result | {"output": str(target)}
    lines = [str(target), f"  {duration(result['seconds'])}, {_verdict(result)}"]
    output.result(values, [*lines, *([f"  {result['notice']}"] if result["notice"] else [])])
    return 0


def _compare(options: argparse.Namespace, output: Output) -> int:
    from vqdq import compare_page

    with _asking():
        request = CompareRequest(
            model=options.model, variants=tuple(options.variants), **_sampling(options)
        )
    target = _new_path(options.output)
    _check_models(options.model, *options.variants)
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

    with _asking():
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


def _check_models(*models: str) -> None:
    """Names that are no model are wrong use; what is wrong inside one shows when it is loaded."""
    from vqdq.models import sources

    with _asking():
        for model in models:
            sources.locate(model)


def _new_path(name: str) -> Path:
    """The absolute path of an output that does not exist yet, in a folder that does."""
    target = Path(name).expanduser().absolute()
    if target.exists() or target.is_symlink():
        raise WrongUse(
            "already exists; nothing was changed.",
            where=str(target),
            remedy="Remove it or choose another output.",
        )
    if not target.parent.is_dir():
        raise WrongUse(
            "there is no such folder.", where=str(target.parent), remedy="Make it first."
        )
    return target


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    names = ("prompt", "seed", "steps", "guidance")
    return {name: getattr(options, name) for name in names}
