"""Bits for each layer against the same bits for all, at the same bytes, on the embedded model."""

from __future__ import annotations

from collections.abc import Mapping

import torch

import vqdq
from benchmarks.timing import table
from vqdq import codecs
from vqdq.codecs.base import Packed
from vqdq.demo import evaluate
from vqdq.demo.scenes import caption
from vqdq.layers.matrix import weight_matrix
from vqdq.layers.surgery import quantized
from vqdq.metrics.trajectory import PredictionError, decibel, sqnr_by_step
from vqdq.models.budget import GUIDED_WEIGHT, Target, recorded, targeted
from vqdq.models.compressor import as_recipe
from vqdq.models.denoisers import denoiser
from vqdq.models.encoding import layer_seed
from vqdq.models.pipelines import component
from vqdq.models.sensitivity import measure
from vqdq.models.trajectory import record
from vqdq.params import Params
from vqdq.recipe import Plan, Recipe, resolve
from vqdq.rules import Rule

CAPTIONS = 16
BITS = (2.0, 2.5, 3.0, 3.5, 4.0)
BASE = "trellis-3bit"


class Encoder:
    """Encodes layers of the denoiser, each at each setting once."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._known: dict[tuple[str, str, Params], Packed] = {}

    def packed(self, plan: Plan) -> dict[str, Packed]:
        """Returns the packed layers of a plan, the same bytes that compression would write."""
        found: dict[str, Packed] = {}
        for planned in plan.quantized:
            name, method, params = planned.layer.name, planned.method, planned.params
            assert method is not None
            assert params is not None
            key = (name, method, params)
            if key not in self._known:
                matrix, taps = weight_matrix(self._module.get_submodule(name))
                generator = torch.Generator().manual_seed(layer_seed(plan.recipe.seed, name))
                codec = codecs.create(method, params)
                self._known[key] = codec.encode(matrix, taps=taps, generator=generator)
            found[name] = self._known[key]
        return found


def mixture(plan: Plan, bits: float) -> Recipe:
    """Returns the plain rule for `bits` a weight: every layer gets one of the two whole numbers
    around it, in the order of execution the higher one whenever the average so far is below."""
    rules = [rule for rule in plan.recipe.rules if rule.method is None]
    spent, weights = 0.0, 0
    for planned in plan.quantized:
        assert planned.params is not None
        count = planned.layer.shape.count
        low = int(bits)
        level = low if bits == low or spent > bits * weights else low + 1
        spent, weights = spent + level * count, weights + count
        settings = type(planned.params).from_json({**planned.params.to_json(), "bits": level})
        rules.append(Rule(pattern=planned.layer.name, method=planned.method, params=settings))
    return Recipe(name=f"plain-{bits:g}", rules=tuple(rules), seed=plan.recipe.seed)


def run() -> str:
    """Returns the table as Markdown."""
    pipeline = vqdq.load("demo")
    module = denoiser(pipeline)[1]
    parts = component(pipeline)
    base = resolve(as_recipe(BASE), parts)
    captions = [caption(scene) for scene in evaluate.evaluation_scenes(CAPTIONS)]
    held_out = record(
        pipeline, captions, steps=evaluate.STEPS, guidance=evaluate.GUIDANCE, batch_size=4
    )
    names = [planned.layer.name for planned in base.quantized]
    sensitivity = measure(module, recorded(pipeline, "demo"), names)
    effects = sensitivity.blended(GUIDED_WEIGHT)
    encoder = Encoder(module)
    rows: list[list[str]] = []

    def add(name: str, plan: Plan) -> None:
        packed = encoder.packed(plan)
        with quantized(module, packed):
            found = sqnr_by_step(module, held_out)
        rows.append(_row(name, plan, found, _predicted_db(module, packed, effects)))
        print(rows[-1], flush=True)

    for bits in BITS:
        plain = resolve(mixture(base, bits), parts)
        add(f"{bits:g}, plain", plain)
        if bits > min(BITS):  # at the smallest size there is nothing to choose
            target = Target(kind="bytes", value=plain.predicted_bytes)
            chosen = targeted(pipeline, base.recipe, target, sensitivity=sensitivity)
            add(f"{bits:g}, allocated", chosen.plan)
    head = ["bits", "denoiser, bytes", "bits per packed weight", "raw SQNR, dB", "guided SQNR, dB"]
    return table([*head, "predicted, dB"], rows)


def _predicted_db(
    module: torch.nn.Module, packed: Mapping[str, Packed], effects: Mapping[str, float]
) -> float:
    """Returns what the sum of the layers' losses says, from their real relative errors."""
    lost = 0.0
    for name, weight in packed.items():
        matrix = weight_matrix(module.get_submodule(name))[0].double()
        energy = float(matrix.square().sum())
        lost += effects[name] * float((matrix - weight.decode().double()).square().sum()) / energy
    return decibel(1.0, lost)


def _row(name: str, plan: Plan, found: PredictionError, predicted_db: float) -> list[str]:
    return [
        name,
        f"{plan.predicted_bytes:,}",
        f"{plan.bits_per_weight:.3f}",
        f"{found.raw_overall_db:.2f}",
        f"{found.guided_overall_db:.2f}",
        f"{predicted_db:.1f}",
    ]
