"""An engine for the page's tests: the real shapes of results, pictures of the demo world, no model.

Comparisons are in `toy_compare`, grids in `toy_grid`. A compression takes as long as
`VQDQ_TOY_LAYER_SECONDS` says for each layer; a model whose name holds "broken" fails in the middle.
"""

from __future__ import annotations

import dataclasses
import os
import time
from contextlib import closing
from functools import cache
from pathlib import Path

from tests.ui import toy_compare, toy_grid
from vqdq.errors import UserError
from vqdq.jobs import arithmetic, pairs
from vqdq.jobs.inputs import in_words
from vqdq.jobs.requests import (
    BlindRequest,
    CompareRequest,
    CompressRequest,
    GenerateRequest,
    GridRequest,
    PlanRequest,
)
from vqdq.jobs.votes import VoteStore
from vqdq.models import pipelines
from vqdq.progress import Event
from vqdq.recipe import resolve
from vqdq.rules import Rule

component = cache(pipelines.component)


class Engine:
    def __init__(self, workspace, _warm=()):
        self.place = workspace.path
        self.pace = float(os.environ.get("VQDQ_TOY_LAYER_SECONDS", "0.004"))

    def idle(self):
        return False

    def execute(self, request, folder, *, report):
        report(Event(stage="load", done=0, total=1, message=request.title))
        if isinstance(request, CompressRequest):
            return self.compress(request, report)
        if isinstance(request, PlanRequest):
            return self.plan(request, report)
        if isinstance(request, GenerateRequest):
            index = int(request.model != "demo")
            return toy_compare.one(
                request, folder, "picture", index, request.model, request.prompt, request.seed, 0
            )
        if isinstance(request, BlindRequest):
            from tests.ui import blind_world  # the page with it: seconds that no other job needs

            with closing(VoteStore.of(self.place)) as votes:
                protocol = votes.protocol(request.test)
            return pairs.draw_all(protocol, folder, blind_world.paint, report=report)
        if isinstance(request, GridRequest):
            return toy_grid.execute(request, folder, self.place, report)
        assert isinstance(request, CompareRequest)
        return toy_compare.compare(request, folder, report)

    def stage(self, report, name, total, message=""):
        for done in range(total):
            report(Event(stage=name, done=done, total=total, message=message))
            time.sleep(20 * self.pace)

    def plan(self, request, report):
        """2, 3 or 4 bits in turn, whatever the target: the shape of a plan, not its sense."""
        self.stage(report, "record", 4)
        self.stage(report, "sensitivity", 8)
        self.stage(report, "distortion", 8)
        shapes = component(request.model)
        before = resolve(request.recipe, shapes)
        kind = type(request.recipe.rules[-1].params)
        rules = tuple(
            Rule(pattern=item.layer.name, method="trellis", params=kind(bits=2 + number % 3))
            for number, item in enumerate(before.quantized)
        )
        recipe = dataclasses.replace(request.recipe, name="toy-plan", rules=rules)
        after = resolve(recipe, shapes)
        Path(request.sensitivity).write_text("{}")
        return {
            "recipe": recipe.to_json(),
            "predicted_bytes": after.predicted_bytes,
            "reference_bytes": after.reference_bytes,
            "bits_per_weight": after.bits_per_weight,
            "predicted_sqnr_db": 28.4,
            "quantized_layers": len(after.quantized),
            "layers": [
                {
                    "name": item.layer.name,
                    "method": item.method,
                    "settings": "",
                    "bits_per_weight": item.bits_per_weight,
                    "bytes": item.storage.total_bytes,
                    "sensitivity": 1 / len(after.quantized) if item.method else None,
                }
                for item in after.layers
            ],
            "seconds": 1.0,
        }

    def compress(self, request, report):
        plan = resolve(request.recipe, component(request.model))
        calibrated = request.recipe.calibration is not None
        if calibrated:
            self.stage(report, "record", 8)
            self.stage(report, "calibrate", 20)
        layers = []
        for number, item in enumerate(plan.layers):
            report(
                Event(stage="encode", done=number, total=len(plan.layers), message=item.layer.name)
            )
            slow = (Path(request.output).parents[1] / "slow").exists()
            time.sleep(0.3 if slow else self.pace)
            if "broken" in request.name and number == 20:
                raise UserError(
                    "3 of 4096 weights are NaN or infinite.",
                    where=item.layer.name,
                    remedy="The checkpoint is damaged or diverged: use another one.",
                )
            layers.append(
                {
                    "name": item.layer.name,
                    "method": item.method,
                    "bits_per_weight": item.bits_per_weight,
                    "error_db": None if item.method is None else -17.0 - (number % 7) * 0.4,
                    "output_error_db": -21.5 if item.method and calibrated else None,
                    "bytes": item.storage.total_bytes,
                    "reference_bytes": 2 * item.storage.num_weights,
                    "seconds": 0.1,
                    "activation": item.activation,
                    "activation_bits": (given := item.quantizer()) and given.bits,
                    "input_bytes": sum(spec.num_bytes for spec in item.inputs),
                }
            )
        if request.recipe.ranges is not None:
            self.stage(report, "ranges", 8)
        tuned = request.recipe.finetune is not None
        if tuned:
            self.stage(report, "finetune", 20, "36.20 dB held out, 33.10 at the start")
        report(Event(stage="save", done=1, total=1))
        output = Path(request.output)
        part = output.with_name(output.name + ".partial")
        part.mkdir(parents=True)
        (part / "model_index.json").write_text("{}")
        part.rename(output)
        return {
            "output": str(output),
            "recipe": request.recipe.name,
            "recipe_digest": request.recipe.digest,
            "predicted_bytes": plan.predicted_bytes,
            "measured_bytes": plan.predicted_bytes,
            "reference_bytes": plan.reference_bytes,
            "bits_per_weight": plan.bits_per_weight,
            "seconds": 1.25,
            "peak_memory_bytes": 812_000_000,
            "calibrated": calibrated,
            "activations": in_words(request.recipe),
            "arithmetic": arithmetic.expected(plan),
            "learnt": {"before_db": 33.1, "after_db": 36.2, "steps": 20} if tuned else None,
            "layers": layers,
        }
