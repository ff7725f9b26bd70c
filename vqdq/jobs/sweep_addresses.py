"""The address of every result of a sweep: the digest of all that decides it.

Recipes that share a calibration, or a layer with the same method and seed, share its address, so it
is made once. The environment is part of every address: results of another version of the program or
of another kind of device are other results.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vqdq import codecs
from vqdq.calibration import CalibrationParams
from vqdq.errors import UserError
from vqdq.jobs import costs
from vqdq.jobs.grid_cells import Drawer, Picture
from vqdq.jobs.sweep_units import Environment, digest_of, packed
from vqdq.recipe import Plan, PlannedLayer, Recipe

_START_SECONDS = 1.5  # of opening the smallest model
_BYTES_A_SECOND = 1e9  # from a shared folder, in 32 bits


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """A picture with the addresses of its results; `score` is "" where nothing is compared."""

    picture: Picture
    image: str
    score: str
    reference: str


@dataclass(kw_only=True, slots=True)
class Opened:
    """A model that is opened, not made; `open_seconds` and `call_seconds` are estimated."""

    reference: str
    digest: str
    name: str
    pixels: int
    call_seconds: float
    open_seconds: float


@dataclass(kw_only=True, slots=True)
class Made:
    """A model that a recipe makes, and the addresses of its parts.

    Attributes:
        layers: by the layer's name.
        parts: layers whose statistics are taken together, by the address.
        records: of recorded calls, by the number of the first prompt.
        smoothing: "" where nothing is smoothed.
    """

    recipe: Recipe
    plan: Plan
    name: str
    smoothing: str
    layers: dict[str, str] = field(default_factory=dict[str, str])
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    records: dict[int, str] = field(default_factory=dict[int, str])


@dataclass(kw_only=True, slots=True)
class Addresses:
    """The addresses of one sweep.

    Args:
        environment: what the workers run on.
        metrics: what is measured against the reference's picture.

    Attributes:
        models: by the reference that opens them.
        made: models that recipes make, by the drawer's key.
        problems: why a recipe does not fit its model, by the drawer's key.
    """

    environment: Environment
    metrics: tuple[str, ...]
    models: dict[str, Opened] = field(default_factory=dict[str, Opened])
    made: dict[str, Made] = field(default_factory=dict[str, Made])
    problems: dict[str, UserError] = field(default_factory=dict[str, UserError])

    def model_of(self, drawer: Drawer) -> Opened:
        """Returns the model that a drawer opens: to draw with it, or to make another of it."""
        return self.models[drawer.made or drawer.model]

    def open(self, drawer: Drawer) -> None:
        """Takes in what draws.

        Raises:
            UserError: the model cannot be opened.
        """
        reference = drawer.made or drawer.model
        if reference not in self.models:
            self.models[reference] = _opened(reference)
        if drawer.compresses and drawer.recipe is not None:
            try:
                self.made[drawer.key] = self._addressed(self.models[reference], drawer.recipe)
            except UserError as error:
                self.problems[drawer.key] = error

    def _address(self, kind: str, *parts: object) -> str:
        return f"{kind}/{digest_of([self.environment.digest, *parts])[:40]}"

    def _addressed(self, model: Opened, recipe: Recipe) -> Made:
        from vqdq.models import compressor  # heavy: diffusers

        plan = compressor.plan(model.reference, recipe)
        files = {each: _file_digest(each) for each in sorted(_prompt_files(recipe))}
        whole = [model.digest, recipe.digest, list(files.values())]
        smooth = {layer.layer.name for layer in plan.activated if _smooths(layer)}
        made = Made(
            recipe=recipe,
            plan=plan,
            name=self._address("model", model.name, recipe.to_json(), *whole),
            smoothing=self._address("smoothing", *whole) if smooth else "",
        )
        calibration, used = recipe.calibration, list[object]()
        if calibration is not None and any(uses_hessian(layer) for layer in plan.quantized):
            prompts = files.get(calibration.prompt_file)
            drawn = [calibration.steps, calibration.guidance, calibration.seed, prompts]
            for start, count in _batches(calibration):
                made.records[start] = self._address("record", model.digest, *drawn, start, count)
            deciding = [
                *(model.digest, *drawn, calibration.prompts),
                *(calibration.tokens_per_channel, calibration.weighting),
            ]
            for part in _parts(plan, calibration):
                made.parts[self._address("statistics", *deciding, part)] = part
            used = [*deciding, calibration.damping, calibration.bias_correction]
        for layer in plan.quantized:
            name = layer.layer.name
            made.layers[name] = self._address(
                "layer",
                *(model.digest, name, layer.method),
                None if layer.params is None else layer.params.to_json(),
                recipe.seed,
                used if uses_hessian(layer) else [],
                made.smoothing if name in smooth else "",
            )
        return made

    def wishes(self, pictures: Sequence[Picture]) -> list[Wish]:
        """Returns the addresses of pictures whose drawers were taken in."""
        found: dict[str, str] = {}
        for picture in pictures:
            drawer = picture.drawer
            model = self.model_of(drawer)
            made = self.made.get(drawer.key)
            by = [model.digest, model.name] if made is None else [made.name]
            asked = (picture.prompt, picture.seed, picture.steps, picture.guidance)
            found[picture.key] = self._address("picture", *by, *asked)
        wishes: list[Wish] = []
        for picture in pictures:
            image, reference = found[picture.key], found.get(picture.reference, "")
            compared = bool(reference) and picture.reference != picture.key
            score = self._address("score", image, reference, self.metrics) if compared else ""
            wishes.append(
                Wish(picture=picture, image=image, score=score, reference=reference * compared)
            )
        return wishes


def _opened(reference: str) -> Opened:
    from vqdq.models import pipelines, shards  # heavy: diffusers
    from vqdq.models.sources import locate

    info = pipelines.describe(reference)
    pixels = max(info.resolution) if info.resolution else 512
    return Opened(
        reference=reference,
        digest=shards.content_digest(reference),
        name=locate(reference).name,
        pixels=pixels,
        call_seconds=costs.call_seconds(pipelines.component(reference), pixels),
        open_seconds=_START_SECONDS + 4 * info.parameters / _BYTES_A_SECOND,
    )


def _parts(plan: Plan, params: CalibrationParams) -> list[tuple[str, ...]]:
    """The layers in as many parts as passes over the calls would be needed on one computer.

    More would make the same calls more often: what is gained by sharing is lost by repeating.
    """
    layers = plan.component.layers
    held = [4.0 * layer.shape.in_features**2 for layer in layers]
    count = max(1, math.ceil(sum(held) / (params.memory_gb * 1e9)))
    size = {layer.name: need for layer, need in zip(layers, held, strict=True)}
    names = [layer.name for layer in layers]
    return [tuple(part) for part in packed(names, size.__getitem__, sum(held) / count)]


def _batches(params: CalibrationParams) -> list[tuple[int, int]]:
    from vqdq.models.shards import BATCH  # heavy: diffusers

    return [
        (start, min(BATCH, params.prompts - start)) for start in range(0, params.prompts, BATCH)
    ]


def uses_hessian(layer: PlannedLayer) -> bool:
    """Returns whether a layer's codec looks at the statistics of its inputs."""
    return layer.method is not None and codecs.get(layer.method).uses_hessian


def _smooths(layer: PlannedLayer) -> bool:
    quantizer = layer.quantizer()
    return quantizer is not None and quantizer.smooths


def _prompt_files(recipe: Recipe) -> set[str]:
    sections = (recipe.calibration, recipe.ranges)
    return {section.prompt_file for section in sections if section and section.prompt_file}


def _file_digest(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}.", where=path) from error
