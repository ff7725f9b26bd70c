"""How fast this computer encodes: measured in a second for each method.

A layer costs a share of its own (reading it, writing a small file durably) and a share for each
weight, so two layers of different size tell both. The measurement does what a compression does with
a layer, from a safetensors file to a safetensors file. It is kept in the workspace and made anew
when the program or the number of cores is another one.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from vqdq import codecs
from vqdq.codecs.base import InputStats, WeightShape
from vqdq.durable import sha256
from vqdq.jobs.faults import disk_faults
from vqdq.jobs.run import read_json, write_json
from vqdq.params import Params
from vqdq.progress import silent
from vqdq.recipe import Component, Layer, PlannedLayer, Recipe, resolve
from vqdq.rules import Rule
from vqdq.tensors import TensorSpec

FILE = "paces.json"
SAVING = "save"
"""The name under which the pace of writing is known; its seconds are of a byte, not of a weight."""
CALL, PRODUCT = "call", "product"
"""The same for running a model: seconds of each weight of a denoiser for a picture at 16 × 16
latents, and of each floating-point operation of a large product.
"""
_SIDE, _PICTURES, _ORDER = 16, 16, 2048
_FILES = 12  # of a pipeline's folder, each written durably
_WRITTEN = 32_000_000  # bytes
_SMALL, _LARGE = 128, 1280  # sides of the two layers; the larger one is typical of SDXL
_TIMES = 3  # the fastest counts: the others waited for somebody else
_LONG = 0.3  # seconds of a layer that is measured once
_STEP = 1e6  # weights a second below which a smaller layer is enough
_KEY = "weight"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """What encoding one layer costs on this computer; measured.

    Attributes:
        layer_seconds: of any layer; weight_seconds: of each weight in addition.
    """

    layer_seconds: float
    weight_seconds: float

    def seconds(self, weights: int) -> float:
        """Returns the seconds of a layer."""
        return self.layer_seconds + weights * self.weight_seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Paces:
    """What was measured on this computer.

    Attributes:
        known: by `key`.
    """

    known: Mapping[str, Pace] = field(default_factory=dict[str, Pace])

    @property
    def saving(self) -> Pace | None:
        """What putting a finished folder together costs: a start, and seconds of each byte."""
        return self.known.get(SAVING)

    def of(self, planned: PlannedLayer) -> Pace | None:
        """Returns the pace of a planned layer's method: with its settings, or with others."""
        if planned.method is None or planned.params is None:
            return None
        exact = self.known.get(key(planned.method, planned.params))
        start = f"{planned.method} "
        alike = (pace for name, pace in self.known.items() if name.startswith(start))
        return exact or next(alike, None)


def key(method: str, params: Params) -> str:
    """Returns the name under which a method with its settings is known."""
    return f"{method} {json.dumps(params.to_json(), sort_keys=True)}"


def read(workspace: Path) -> Paces:
    """Returns what was measured in a workspace; nothing of another version or number of cores."""
    values = read_json(workspace / FILE) or {}
    if values.get("computer") != computer():
        return Paces()
    entries: Any = values.get("paces")
    if not isinstance(entries, dict):
        return Paces()
    found: dict[str, Pace] = {}
    for name, entry in cast(dict[str, dict[str, float]], entries).items():
        try:
            found[name] = Pace(**entry)
        except TypeError:
            continue  # of another form: it is measured again
    return Paces(known=found)


def keep(workspace: Path, paces: Paces) -> None:
    """Writes what was measured."""
    values = {name: asdict(pace) for name, pace in paces.known.items()}
    with disk_faults(workspace / FILE):
        write_json(workspace / FILE, {"computer": computer(), "paces": values})


def faster(one: Pace | None, other: Pace) -> Pace:
    """Returns the better of two measurements: a slower one waited for somebody else."""
    if one is None:
        return other
    return Pace(
        layer_seconds=min(one.layer_seconds, other.layer_seconds),
        weight_seconds=min(one.weight_seconds, other.weight_seconds),
    )


def computer() -> str:
    """Returns what a measurement is good for: this version on this many cores."""
    from vqdq.models.partial import version

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{version()}, {cores} cores, {torch.get_num_threads()} threads"


def wanted(recipes: Iterable[Recipe]) -> list[tuple[str, Params]]:
    """Returns the methods of recipes with their settings, each once."""
    found: dict[str, tuple[str, Params]] = {}
    for recipe in recipes:
        for rule in recipe.rules:
            if rule.method is not None and rule.params is not None:
                found.setdefault(key(rule.method, rule.params), (rule.method, rule.params))
    return list(found.values())


def measure(method: str, params: Params, folder: Path) -> Pace:
    """Returns the pace of a method; takes about a second, and writes below `folder` meanwhile.

    Raises:
        UserError: the method is not installed or cannot take the layer.
    """
    with tempfile.TemporaryDirectory(dir=folder, prefix=".pace-") as scratch:
        place = Path(scratch)
        _encode(method, params, _SMALL, place)  # loads tables and kernels
        small = min(_encode(method, params, _SMALL, place) for _ in range(_TIMES))
        middle = 4 * _SMALL
        quick = _encode(method, params, middle, place)
        side = _LARGE if quick < middle**2 / _STEP else middle
        times = _TIMES if quick < _LONG else 1
        seconds = min(_encode(method, params, side, place) for _ in range(times))
    many, few = side * side, _SMALL * _SMALL
    each = max((seconds - small) / (many - few), 0.0)
    return Pace(
        layer_seconds=max(small - few * each, 0.0),
        weight_seconds=each,
    )


def measure_saving(folder: Path) -> Pace:
    """Returns the pace of writing weights durably and reading them again for their checksums."""
    from vqdq.models.weights import write_weights

    def seconds(count: int, name: str) -> float:
        values = torch.zeros(count, dtype=torch.uint8)
        start = time.perf_counter()
        path = place / f"{name}.safetensors"
        write_weights(path, [TensorSpec.of(_KEY, values)], {}, lambda _: values)
        sha256(path)
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory(dir=folder, prefix=".pace-") as scratch:
        place = Path(scratch)
        small = min(seconds(1, f"small{turn}") for turn in range(_TIMES))
        large = min(seconds(_WRITTEN, f"large{turn}") for turn in range(_TIMES))
    each = max(large - small, 0.0) / _WRITTEN
    return Pace(layer_seconds=_FILES * small, weight_seconds=each)


def measure_running() -> dict[str, Pace]:
    """Returns the paces `CALL`, of the embedded model in batches as calibration draws them, and
    `PRODUCT`; takes a second or two.
    """
    from vqdq.models import pipelines  # heavy: diffusers

    module = pipelines.load(pipelines.DEMO).unet
    states = torch.zeros(_PICTURES, 1, module.config.cross_attention_dim)
    latents = torch.zeros(_PICTURES, module.config.in_channels, _SIDE, _SIDE)
    steps = torch.zeros(_PICTURES)
    matrix = torch.ones(_ORDER, _ORDER)
    with torch.inference_mode():
        call = _quickest(lambda: module(latents, steps, encoder_hidden_states=states))
        product = _quickest(lambda: matrix @ matrix)
    weights = sum(layer.shape.count for layer in pipelines.component(pipelines.DEMO).layers)
    return {
        CALL: Pace(layer_seconds=0.0, weight_seconds=call / _PICTURES / weights),
        PRODUCT: Pace(layer_seconds=0.0, weight_seconds=product / (2 * _ORDER**3)),
    }


def _quickest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of a few times, after one that is not counted."""
    seconds: list[float] = []
    for _ in range(_TIMES + 1):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def _encode(method: str, params: Params, side: int, folder: Path) -> float:
    """Returns the seconds of one layer from file to file."""
    from vqdq.layers.matrix import to_matrix
    from vqdq.models.encoding import encode_layer
    from vqdq.models.weights import open_weights, write_weights

    source, target = folder / f"{side}.safetensors", folder / "packed.safetensors"
    if not source.exists():
        generator = torch.Generator().manual_seed(side)
        weight = torch.randn(side, side, generator=generator).half()
        write_weights(source, [TensorSpec.of(_KEY, weight)], {}, lambda _: weight)
        del weight
    planned = _planned(method, params, side)
    width = torch.eye(side) if codecs.get(method).needs_hessian else None
    start = time.perf_counter()
    matrix = to_matrix(open_weights(source).read(_KEY))
    stats = None if width is None else InputStats(hessian=width)
    layer = encode_layer(matrix, planned, 0, silent, stats=stats)
    tensors = layer.packed.tensors
    specs = [TensorSpec.of(name, tensor) for name, tensor in tensors.items()]
    write_weights(target, specs, {}, lambda spec: tensors[spec.name])
    return time.perf_counter() - start


def _planned(method: str, params: Params, side: int) -> PlannedLayer:
    shape = WeightShape(out_features=side, in_features=side)
    component = Component(
        name="unet",
        layers=(Layer(name="pace", kind="linear", shape=shape),),
        tensors=(TensorSpec(name="pace.weight", dtype=torch.float16, shape=(side, side)),),
    )
    recipe = Recipe(name="pace", rules=(Rule(pattern="*", method=method, params=params),))
    return resolve(recipe, component).layers[0]
