"""`vqdq generate` and `vqdq compare`: pictures from a model and its variants."""

from __future__ import annotations

import argparse
import math
import shutil
from collections.abc import Sequence
from statistics import median
from typing import Any

from vqdq.cli.checks import asking, check_models, new_path
from vqdq.cli.terminal import Output, table
from vqdq.durable import publish
from vqdq.errors import UserError
from vqdq.jobs import arithmetic
from vqdq.jobs import compare as comparing
from vqdq.jobs import generate as generating
from vqdq.jobs.batch import FILE, read
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.placing import require_device
from vqdq.jobs.requests import CompareRequest, GenerateRequest
from vqdq.jobs.results import CompareResult, Distance, Picture, PictureSet
from vqdq.jobs.run import write_json
from vqdq.jobs.warm import WarmPipelines
from vqdq.quantities import duration, size
from vqdq.report import bundle
from vqdq.report.source import open_run


def generate(options: argparse.Namespace, output: Output) -> int:
    """Draws one picture into a new file."""
    with asking():
        request = GenerateRequest(model=options.model, **_sampling(options), **_mode(options))
        if not options.output.lower().endswith(".png"):
            raise UserError("is not a PNG.", where=options.output, remedy="Name a new FILE.png.")
        require_device(request.device)
    target = new_path(options.output)
    check_models(options.model, report=output.report)
    cache = WarmPipelines()
    folder = target.parent
    result = generating.execute(
        request, folder, report=output.report, cache=cache, name=target.name
    )
    values = result | {"output": str(target)}
    lines = [str(target), f"  {_time(result)}, {_verdict(result)}"]
    lines += [] if result["arithmetic"] is None else [f"  {_inputs(result)}"]
    lines += [f"  {words}" for words in _waited(result)]
    output.result(values, [*lines, *([f"  {result['notice']}"] if result["notice"] else [])])
    return 0


def compare(options: argparse.Namespace, output: Output) -> int:
    """Draws one picture with each model into a new folder."""
    with asking():
        request = CompareRequest.batch(
            model=options.model,
            variants=tuple(options.variants),
            prompts=_prompts(options),
            seeds=(options.seed,),
            steps=options.steps,
            guidance=options.guidance,
            floor=options.floor,
            **_mode(options),
        )
        require_device(request.device)
    target = new_path(options.output)
    check_models(options.model, *options.variants, report=output.report)
    part = target.with_name(f".{target.name}.part")
    with disk_faults(target):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
    try:
        result = comparing.execute(request, part, report=output.report, cache=WarmPipelines())
        sets = read(part, request) if request.is_batch else []
        report = {"request": request.to_json(), **result, "pictures": sets}
        with disk_faults(target):
            write_json(part / "report.json", report)
        bundle.write(open_run(part), part / "index.html", data="report")
        (part / FILE).unlink(missing_ok=True)  # all of it is in the report
        with disk_faults(target):
            publish(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    lines = _medians(sets, result) if request.is_batch else _compared(result)
    lines += [
        f"  {each['label']}: {words}" for each in result["variants"] for words in _waited(each)
    ]
    output.result(report | {"output": str(target)}, [str(target), *lines])
    return 0


def _prompts(options: argparse.Namespace) -> tuple[str, ...]:
    """The prompt, or those of a file: text, CSV, TSV or JSON, as in a grid."""
    if options.prompts is None:
        return (options.prompt,)
    from vqdq.models import prompt_sets

    return tuple(each.text for each in prompt_sets.read_prompt_set(options.prompts).prompts)


def _compared(result: CompareResult) -> list[str]:
    rows = [("  picture", "PSNR", "SSIM", "FLIP", "cosine", "time", "size", "judge")]
    empty = ("", "", "", "")
    rows.append(("  " + result["reference"]["label"], *empty, *_costs(result["reference"])))
    for picture in result["variants"]:
        rows.append(("  " + picture["label"], *_apart(picture), *_costs(picture)))
    floor = result["floor"]
    if floor is not None:
        rows.append((f"  floor: {floor['dtype']}", *_apart(floor["rounding"]), "", "", ""))
        if floor["repeat"] is not None:
            rows.append(("  floor: drawn again", *_apart(floor["repeat"]), "", "", ""))
    given = [
        f"  {each['label']}: {_inputs(each)}" for each in result["variants"] if each["arithmetic"]
    ]
    problems = [f"  ! {problem}" for problem in result["certificate"]["problems"]]
    return [*table(rows), *given, *problems, "  index.html shows them side by side."]


def _apart(row: Distance) -> tuple[str, str, str, str]:
    psnr = "equal" if row["psnr"] is None else f"{row['psnr']:.2f} dB"
    cosine = "" if row["latent_cosine"] is None else f"{row['latent_cosine']:.5f}"
    return psnr, f"{row['ssim']:.4f}", f"{row['flip']:.4f}", cosine


def _medians(sets: Sequence[PictureSet], result: CompareResult) -> list[str]:
    """One row a variant: medians over the sets."""
    rows = [(f"  {len(sets)} sets, medians", "PSNR", "SSIM", "FLIP", "cosine")]
    measured: list[tuple[str, list[Distance]]] = [
        (picture["label"], [row for each in sets if (row := each["variants"][index]) is not None])
        for index, picture in enumerate(result["variants"])
    ]
    measured.append(("floor", [each["floor"]["rounding"] for each in sets if each["floor"]]))
    for label, found in measured:
        if found:
            middle = Distance(
                psnr=_finite(median(math.inf if x["psnr"] is None else x["psnr"] for x in found)),
                ssim=median(x["ssim"] for x in found),
                mean_error=median(x["mean_error"] for x in found),
                max_error=median(x["max_error"] for x in found),
                changed=median(x["changed"] for x in found),
                flip=median(x["flip"] for x in found),
                latent_cosine=median(x["latent_cosine"] or 0.0 for x in found),
            )
            rows.append((f"  {label}", *_apart(middle)))
    problems = [f"  ! {problem}" for problem in result["certificate"]["problems"]]
    return [*table(rows), *problems, "  report.json holds every picture's numbers."]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _inputs(picture: Any) -> str:
    return f"{picture['activations']}. {arithmetic.in_words(picture['arithmetic'])}"


def _costs(picture: Any) -> tuple[str, str, str]:
    return _time(picture), size(picture["bytes"]), _verdict(picture)


def _time(picture: Any) -> str:
    """Seconds of a picture, and those that only the first one of a model pays."""
    once = picture.get("once_seconds", 0.0)
    more = f" + {duration(once)} once" if once else ""
    return f"{duration(picture['seconds'] - once)}{more}"


def _verdict(picture: Any) -> str:
    if picture["verdict"] is None:
        return "not judged"
    wrong = [name for name, fine in picture["verdict"].items() if not fine and name != "passed"]
    return f"wrong: {', '.join(wrong)}" if wrong else "shows what was asked"


def _waited(picture: Picture) -> list[str]:
    """What leaving packed weights in main memory did, in words; nothing where it was not asked."""
    if not picture.get("offload"):
        return []
    waiting = picture.get("waiting_bytes", 0)
    if waiting:
        return [f"{size(waiting)} of packed weights stayed in main memory, one layer ahead."]
    if picture["setting"]["device"] == "cpu":
        return [
            "--offload changed nothing: it was drawn on the processor, which reads packed weights"
            " in main memory anyway."
        ]
    return ["--offload changed nothing: layers that round their inputs keep theirs on the card."]


def _mode(options: argparse.Namespace) -> dict[str, Any]:
    names = {"mode": "mode", "cache_bytes": "cache", "offload": "offload", "device": "device"}
    return {name: getattr(options, flag) for name, flag in names.items()}


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    names = ("prompt", "seed", "steps", "guidance")
    return {name: getattr(options, name) for name in names}
