"""What a plan will take, stage by stage, before it starts: estimates, and they are called so.

Encoding goes by the weights of each method; what runs the model goes by how often it is run. The
constants are those of one computer with two cores. Whoever has runs of their own passes what they
measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch

from vqdq.calibration import CalibrationParams, FinetuneParams, RangeParams
from vqdq.jobs.pace import CALL, PRODUCT, Pace, Paces
from vqdq.recipe import Component, Plan, PlannedLayer

# Million weights a second on two cores.
_PACE = {
    "half": 200.0,
    "uniform": 20.0,
    "int8": 20.0,
    "nf4": 20.0,
    "gptq": 8.0,
    "trellis": 6.0,
    "lloyd_max": 5.0,
    "additive": 2.4,
}
_PACE_OTHER = 0.5
_CALL_SECONDS = 0.46e-9  # of one denoiser call, for each weight at 16x16 latents: 10.6 ms, the demo
_LATENT_SIDE = 16
_PIXELS_A_LATENT = 8
_FLOPS = 100e9  # a second, of the products that calibration and error feedback consist of
# Calls in 32 bits that one learnt call costs: forward, backward, and decoding the codes.
_LEARNING = {"float32": 4.0, "bfloat16": 2.0}
_WATCHED = 2.0  # calls that one costs whose extremes are taken
_START = 1.0  # of what runs the model: the first calls
_START_PLANNING, _START_LOADING = 0.2, 0.1
_CHECKED = 2.5e9  # bytes a second of the model's weights: read, and searched for what is no number
_START_SAVING = 0.1  # what is not writing: copies opened, the card, the config
_SAVED = 400e6  # bytes a second: written, made durable, read again for their checksums
# For each weight of the layer that is encoded, measured on layers of 4 to 30 million weights.
_ENCODED_BYTES = {"trellis": 22.0}
_ENCODED_BYTES_OTHER = 25.0
_WORK_BYTES = 50_000_000  # kernels, their threads, what an allocator keeps
_WATCHING_BYTES = 50_000_000  # inputs of the layers, as they are watched
_KEPT_BYTES = 8.0  # of one that is only rounded to 16 bits
# For each entry of the widest Hessian: its factor, and the copies made of it.
_FACTOR_BYTES, _FACTOR_BYTES_WIDE, _WIDE = 32, 16, 8192
# Operations of a product that take as long as factoring, for each width cubed: w³/3 of them, on one
# core, in 64 bits up to `feedback._WIDEST_DOUBLE` columns.
_FACTORED, _FACTORED_WIDE = 5.0, 2.0
_DRAWN = 8  # pictures whose calls are probed
_SAMPLED = 0.03  # of a layer whose error is measured at every rate, on a sample of its weights
_PROBES = 16 * 2 * 4 * 3.0  # calls that measuring sensitivity costs: 16 probed backwards, 8 times


def stages(
    plan: Plan,
    pixels: int,
    paces: Mapping[str, float] | None = None,
    measured: Paces | None = None,
    *,
    copied_bytes: int | None = None,
) -> dict[str, float]:
    """Returns the estimated seconds of each stage that the recipe asks for, in their order.

    Args:
        pixels: side of a picture; 0 when it is not known.
        paces: measured weights a second by method, of finished runs.
        measured: what was measured on this computer beforehand; it comes first.
        copied_bytes: of what is copied beside the compressed weights; None leaves saving out.
    """
    recipe = plan.recipe
    checked = sum(each.reference_bytes for each in (plan, *plan.others))
    seconds = {"plan": _START_PLANNING + checked / _CHECKED}
    if recipe.calibration is not None or recipe.finetune is not None or recipe.ranges is not None:
        seconds["load"] = _START_LOADING + checked / _CHECKED
    if recipe.calibration is not None:
        seconds |= calibrate_seconds(plan, recipe.calibration, pixels, measured)
    seconds["encode"] = sum(encode_seconds(each, paces, measured) for each in (plan, *plan.others))
    if recipe.finetune is not None:
        shape = recipe.calibration or CalibrationParams()
        seconds["finetune"] = finetune_seconds(plan, recipe.finetune, shape, pixels, measured)
    if recipe.ranges is not None:
        known = "record" in seconds  # the calibration's pictures serve, where they are the same
        seconds |= ranges_seconds(plan, recipe.ranges, pixels, measured, drawn=known)
    if copied_bytes is not None:
        written = copied_bytes + sum(each.total_bytes for each in (plan, *plan.others))
        saving = None if measured is None else measured.saving
        saving = saving or Pace(layer_seconds=0.0, weight_seconds=1 / _SAVED)
        seconds["save"] = _START_SAVING + saving.seconds(written)
    return seconds


def encode_seconds(
    plan: Plan, paces: Mapping[str, float] | None = None, measured: Paces | None = None
) -> float:
    """Returns the seconds of encoding a component; see `stages`."""
    known = paces or {}
    seconds, product = 0.0, _product_seconds(measured)
    for layer in plan.quantized:
        method, weights = layer.method or "", layer.storage.num_weights
        own = None if measured is None else measured.of(layer)
        pace = known.get(method) or 1e6 * _PACE.get(method, _PACE_OTHER)
        seconds += weights / pace if own is None else own.seconds(weights)
        if plan.recipe.calibration is not None:
            width, height = layer.layer.shape.in_features, layer.layer.shape.out_features
            factored = _FACTORED if width <= _WIDE else _FACTORED_WIDE
            seconds += width**2 * (factored * width + 2 * height) * product
    return seconds


def memory_bytes(plan: Plan, program: int, parameters: int) -> int:
    """Returns the estimated peak memory of compressing: the program, and the work on a layer.

    Data-free work holds one layer at a time. Work that runs the model holds it in 32 bits as well,
    that which learns or watches a compressed copy, too, and calibration its statistics, as far as
    its budget allows.

    Args:
        program: resident bytes of the process before it starts.
        parameters: of all components.
    """
    work = _WORK_BYTES + max(map(_layer_bytes, _all_layers(plan)), default=0.0)
    recipe = plan.recipe
    held = 0.0
    if recipe.calibration is not None:
        widths = [item.layer.shape.in_features for item in plan.quantized]
        statistics = 4 * sum(width**2 for width in widths)
        widest = max(widths, default=0)
        each = _FACTOR_BYTES if widest <= _WIDE else _FACTOR_BYTES_WIDE
        held += min(statistics, recipe.calibration.memory_gb * 1e9) + each * widest**2
    copied = recipe.finetune is not None or recipe.ranges is not None
    if recipe.calibration is not None or copied:
        held += 4 * parameters * (2 if copied else 1)
    if recipe.ranges is not None:
        held += _WATCHING_BYTES
    return round(program + work + held)


def _all_layers(plan: Plan) -> list[PlannedLayer]:
    return [item for each in (plan, *plan.others) for item in each.layers]


def _layer_bytes(item: PlannedLayer) -> float:
    each = _KEPT_BYTES
    if item.method is not None:
        each = _ENCODED_BYTES.get(item.method, _ENCODED_BYTES_OTHER)
    return each * item.layer.shape.count


def calibrate_seconds(
    plan: Plan, params: CalibrationParams, pixels: int, measured: Paces | None = None
) -> dict[str, float]:
    """Returns the seconds of the stages "record" and "calibrate"; `pixels`: side of a picture."""
    calls = params.prompts * params.steps * (2 if params.guidance > 1 else 1)
    once = calls * call_seconds(plan.component, pixels, measured)
    widths = [layer.layer.shape.in_features for layer in plan.quantized]
    wanted = [params.tokens_per_channel * width for width in widths]
    seen = [calls * each for each in _positions(plan, pixels)]
    tokens = map(min, wanted, seen)
    operations = sum(2 * each * width**2 for each, width in zip(tokens, widths, strict=True))
    products = operations * _product_seconds(measured)
    held = 4 * sum(width**2 for width in widths)
    passes = math.ceil(held / (params.memory_gb * 1e9)) if held else 0
    return {"record": _START + once, "calibrate": passes * once + products}


def _positions(plan: Plan, pixels: int) -> list[float]:
    """Returns the positions that each compressed layer sees of a picture of `pixels` by `pixels`.

    What a component says of itself is for its own size; its widest map are the latents.
    """
    all_of_them = float(_latent_side(pixels) ** 2)
    own = max((layer.positions for layer in plan.component.layers), default=0)
    return [
        all_of_them * item.layer.positions / own if item.layer.positions else all_of_them
        for item in plan.quantized
    ]


def finetune_seconds(
    plan: Plan,
    params: FinetuneParams,
    shape: CalibrationParams,
    pixels: int,
    measured: Paces | None = None,
) -> float:
    """Returns the seconds of the stage "finetune", the pictures it learns from included."""
    from vqdq.models.finetune import computing_dtype  # heavy: diffusers

    halves = 2 if shape.guidance > 1 else 1
    each = call_seconds(plan.component, pixels, measured)
    dtype = str(computing_dtype(params.precision, torch.device("cpu"))).removeprefix("torch.")
    drawn = (params.prompts + max(8, params.prompts // 8)) * shape.steps * halves
    learnt = params.steps * params.batch_size * halves * _LEARNING[dtype]
    return (drawn + learnt) * each


def ranges_seconds(
    plan: Plan, params: RangeParams, pixels: int, measured: Paces | None = None, *, drawn: bool
) -> dict[str, float]:
    """Returns the seconds of the stages "record" and "ranges"; the first only if not `drawn`."""
    calls = params.prompts * params.steps * (2 if params.guidance > 1 else 1)
    once = calls * call_seconds(plan.component, pixels, measured)
    built = [quantizer for item in plan.activated if (quantizer := item.quantizer()) is not None]
    passes = 1 + any(quantizer.smooths for quantizer in built)
    return ({} if drawn else {"record": _START + once}) | {"ranges": passes * _WATCHED * once}


def measuring_seconds(plan: Plan, pixels: int) -> float:
    """Returns the seconds of measuring how much each layer matters, and what each rate costs it."""
    shape = plan.recipe.calibration or CalibrationParams()
    halves = 2 if shape.guidance > 1 else 1
    calls = halves * (_DRAWN * shape.steps + _PROBES)
    return _START + calls * call_seconds(plan.component, pixels) + _SAMPLED * len(plan.quantized)


def call_seconds(component: Component, pixels: int, measured: Paces | None = None) -> float:
    """Returns the seconds of one denoiser call for one picture of `pixels` by `pixels`."""
    known = None if measured is None else measured.known.get(CALL)
    each = _CALL_SECONDS if known is None else known.weight_seconds
    weights = sum(layer.shape.count for layer in component.layers)
    return each * weights * (_latent_side(pixels) / _LATENT_SIDE) ** 2


def _latent_side(pixels: int) -> int:
    """Returns the side of the latents of a picture; of the embedded model's where it is unknown."""
    return max(1, pixels // _PIXELS_A_LATENT) if pixels else _LATENT_SIDE


def _product_seconds(measured: Paces | None) -> float:
    """Seconds of a floating-point operation in a large product of 32 bits."""
    known = None if measured is None else measured.known.get(PRODUCT)
    return 1 / _FLOPS if known is None else known.weight_seconds


def stage_seconds(folder: Path) -> dict[str, float]:
    """Returns how long each stage of a finished run took, as its journal tells; {} without one."""
    spent: dict[str, float] = {}
    last: tuple[str, float] | None = None
    try:
        lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
        for line in lines:
            event = json.loads(line)
            if last is not None:
                spent[last[0]] = spent.get(last[0], 0.0) + event["time"] - last[1]
            last = (str(event["stage"]), float(event["time"]))
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return spent
