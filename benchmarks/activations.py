"""What rounding activations does to the demo model, by method, bits and weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

import vqdq
from benchmarks.activation_variants import VARIANTS
from benchmarks.evidence import Bench, cells
from benchmarks.timing import table
from vqdq.activations.base import ActivationQuantizer, InputRanges
from vqdq.calibration import RangeParams
from vqdq.codecs.base import Packed
from vqdq.errors import UserError
from vqdq.layers.execution import executions
from vqdq.layers.inputs import PREFIX
from vqdq.layers.quantized import QuantizedLayer
from vqdq.layers.surgery import set_activations_
from vqdq.models import compressor
from vqdq.models.checkpoint import quantization_config
from vqdq.models.denoisers import denoiser
from vqdq.models.hub import attach_
from vqdq.models.input_ranges import calibrate_inputs_, collect_ranges
from vqdq.models.packed_config import VqdqConfig
from vqdq.models.students import student, with_denoiser
from vqdq.models.teacher import Teacher
from vqdq.progress import silent
from vqdq.recipe import Plan, PlannedLayer


class ActivationBench(Bench):
    """Rows that also remember how many layers ran in which arithmetic."""

    def __init__(self) -> None:
        super().__init__()
        self._teacher = Teacher.of(self.reference, ranges=RangeParams())
        self._weights: dict[str, dict[str, Packed]] = {}
        self._ranges: dict[str, dict[str, InputRanges]] = {}

    def compressed(self, recipe: vqdq.Recipe, calibration: Path | None) -> Any:
        """Returns the compressed pipeline; equal weights are encoded once for many rows."""
        plan = compressor.plan(self.reference, recipe)
        if any(quantizer.smooths for quantizer in map(_quantizer, plan.activated)):
            return super().compressed(recipe, calibration)
        name, module = denoiser(self.reference)
        twin = student(module, plan, self._packed(recipe), {}, {})
        self._calibrate_(twin, plan)
        attach_(twin, VqdqConfig(**quantization_config(plan)))
        return with_denoiser(self.reference, name, twin)

    def _calibrate_(self, twin: nn.Module, plan: Plan) -> None:
        """As `calibrate_inputs_`; the ranges of inputs that no method turns are collected once."""
        names = [planned.layer.name for planned in plan.activated]
        if not names or any(_quantizer(p).rotation_block(p.layer.site) for p in plan.activated):
            calibrate_inputs_(twin, plan, self._teacher, silent)
            return
        key = _weights_digest(plan.recipe)
        if _quantizer(plan.activated[0]).calibrated:
            if key not in self._ranges:
                calls = self._teacher.range_calls(silent).calls
                self._ranges[key] = collect_ranges(twin, names, calls)
            for planned in plan.activated:
                layer, ranges = planned.layer, self._ranges[key][planned.layer.name]
                for name, tensor in _quantizer(planned).calibrate(ranges, layer.site).items():
                    twin.get_buffer(f"{layer.name}.{PREFIX}{name}").copy_(tensor)
        set_activations_(twin, enabled=True)

    def _packed(self, recipe: vqdq.Recipe) -> dict[str, Packed]:
        key = _weights_digest(recipe)
        if key not in self._weights:
            module = denoiser(compressor.compress(self.reference, _bare(recipe)))[1]
            self._weights[key] = {
                name: layer.packed
                for name, layer in module.named_modules()
                if isinstance(layer, QuantizedLayer)
            }
        return self._weights[key]

    def described(self, small: Any) -> dict[str, Any]:
        found = executions(denoiser(small)[1]).values()
        return {"arithmetic": Counter(item.kind for item in found)}


def _bare(recipe: vqdq.Recipe) -> vqdq.Recipe:
    rules = [replace(rule, activation=None, activation_params=None) for rule in recipe.rules]
    return replace(recipe, rules=tuple(rules), attention=None)


def _weights_digest(recipe: vqdq.Recipe) -> str:
    return _bare(recipe).digest


def _quantizer(planned: PlannedLayer) -> ActivationQuantizer[Any]:
    quantizer = planned.quantizer()
    assert quantizer is not None
    return quantizer


def rows() -> list[dict[str, Any]]:
    """Returns the measurements of every variant; finished rows are found on the disk."""
    bench = ActivationBench()
    found = [bench.floor()]
    for variant in VARIANTS:
        try:
            found.append(bench.row(variant) | {"name": variant.name})
        except UserError as error:
            print(f"{variant.name}: {error}", flush=True)
            continue
        print(_line(found[-1]), flush=True)
    return found


def _line(row: dict[str, Any]) -> list[str]:
    known = cells(row)
    counts = row.get("arithmetic", {})
    words = ", ".join(
        f"{counts[kind]} {kind}" for kind in ("integer", "fp8", "simulated") if counts.get(kind)
    )
    return [*known[:3], words or "–", *known[4:]]


def run() -> str:
    """Returns the table as Markdown."""
    head = [
        "variant", "bits/weight", "MB", "layers", "SQNR, dB", "latent cosine", "PSNR, dB (95 %)",
        "SSIM", "as asked, % (95 %)",
    ]  # fmt: skip
    return table(head, [_line(row) for row in rows()])
