"""A recipe says what happens to which layer; a plan says what comes out, before work starts.

`resolve` is pure: recipe + shapes -> plan. It raises for every fault that can be known in advance,
so that a job that starts is a job that fits, and its predicted bytes equal the file that is
written.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from vqdq import codecs
from vqdq.calibration import CalibrationParams, FinetuneParams
from vqdq.codecs.base import Codec, Storage, WeightShape
from vqdq.errors import UserError
from vqdq.params import Params, nearest
from vqdq.tensors import TensorSpec, safetensors_bytes

FORMAT_VERSION = 1
S = TypeVar("S", bound=Params)
_RECIPE_KEYS = (
    "version", "name", "title", "description", "seed", "rules", "calibration", "finetune",
)  # fmt: skip
_DECIDING_KEYS = ("version", "seed", "rules", "calibration", "finetune")
_RULE_KEYS = ("pattern", "method", "params")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """`pattern` -> method. The first rule that matches a layer decides; no match stays 16-bit.

    Attributes:
        pattern: shell-style glob over the layer's full dotted name ("*.attn2.*", "conv_in").
        method: registered codec, or None to keep the layer in 16 bits.
        params: its settings; None exactly when `method` is None.
    """

    pattern: str
    method: str | None = None
    params: Params | None = None

    def codec(self) -> Codec[Any] | None:
        """Returns the codec of this rule, or None when it keeps layers as they are."""
        return None if self.method is None else codecs.create(self.method, self.params)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Ordered rules with a name and a seed: everything that decides the compressed bytes.

    Attributes:
        calibration: how the layers' inputs are sampled; None encodes from the weights alone.
        finetune: how the result learns from the full-precision model; None leaves it as encoded.
    """

    name: str
    rules: tuple[Rule, ...]
    title: str = ""
    description: str = ""
    seed: int = 0
    calibration: CalibrationParams | None = None
    finetune: FinetuneParams | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the recipe as JSON values, every setting written out."""
        rules: list[dict[str, Any]] = []
        for rule in self.rules:
            entry: dict[str, Any] = {"pattern": rule.pattern, "method": rule.method}
            if rule.params is not None:
                entry["params"] = rule.params.to_json()
            rules.append(entry)
        extra = {"calibration": self.calibration, "finetune": self.finetune}
        return {
            "version": FORMAT_VERSION,
            "name": self.name,
            "title": self.title,
            "description": self.description,
            "seed": self.seed,
            "rules": rules,
            **{key: value.to_json() for key, value in extra.items() if value is not None},
        }

    @property
    def digest(self) -> str:
        """SHA-256 of what decides the bytes (all but name, title and description)."""
        content = {key: value for key, value in self.to_json().items() if key in _DECIDING_KEYS}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, where: str = "recipe") -> Recipe:
        """Returns the recipe in `values`.

        Raises:
            UserError: an unknown key, method or setting (the nearest is named), or a bad value.
        """
        _known_keys(values, _RECIPE_KEYS, where)
        version = values.get("version", FORMAT_VERSION)
        if version != FORMAT_VERSION:
            raise UserError(
                f"version {version!r} is not supported.",
                where=where,
                remedy=f"This program reads version {FORMAT_VERSION}.",
            )
        rules = values.get("rules")
        if not isinstance(rules, list) or not rules:
            raise UserError(
                "there are no rules.", where=where, remedy='Add "rules": [{"pattern": "*", …}].'
            )
        seed = values.get("seed", 0)
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
            raise UserError(
                f"seed {seed!r} is out of range.", where=where, remedy="Use 0 to 2^63 - 1."
            )
        texts = {key: values.get(key, "") for key in ("name", "title", "description")}
        for key, text in texts.items():
            if not isinstance(text, str):
                raise UserError(f"{text!r} is not a text.", where=f"{where}.{key}")
        ready = [
            _rule(rule, f"{where}.rules[{i}]") for i, rule in enumerate(cast(list[Any], rules))
        ]
        return cls(
            name=texts["name"] or "unnamed",
            rules=tuple(ready),
            title=texts["title"],
            description=texts["description"],
            seed=seed,
            calibration=_section(CalibrationParams, values, "calibration", where),
            finetune=_section(FinetuneParams, values, "finetune", where),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A layer that could be quantized.

    Attributes:
        name: full dotted name inside its component ("down_blocks.0.resnets.0.conv1").
        kind: "linear" or "conv2d".
        shape: its weight as the codecs see it.
    """

    name: str
    kind: str
    shape: WeightShape


@dataclass(frozen=True, kw_only=True, slots=True)
class Component:
    """Shapes of one model component, read from a file's header or a live module; no weights.

    Attributes:
        name: "unet" or "transformer".
        layers: candidates in the order of execution.
        tensors: every tensor that the component stores, layers' weights and biases included, by its
            key.
    """

    name: str
    layers: tuple[Layer, ...]
    tensors: tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedLayer:
    """One layer of a plan: the winning rule, the method (None = kept in 16 bits), its storage."""

    layer: Layer
    rule: int | None
    method: str | None
    params: Params | None
    storage: Storage

    @property
    def bits_per_weight(self) -> float:
        """True bits per weight of this layer, everything counted."""
        return self.storage.bits_per_weight


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a recipe does to a component, exactly.

    Attributes:
        recipe: the recipe resolved.
        component: the shapes it was resolved for.
        layers: one entry per candidate layer, in the component's order.
        tensors: every tensor of the file that will be written.
        reference_bytes: size of the component's 16-bit weight file.
        predicted_bytes: size of the compressed weight file; equal to the file by construction.
    """

    recipe: Recipe
    component: Component
    layers: tuple[PlannedLayer, ...]
    tensors: tuple[TensorSpec, ...]
    reference_bytes: int
    predicted_bytes: int

    @property
    def quantized(self) -> tuple[PlannedLayer, ...]:
        """The layers that some codec encodes."""
        return tuple(layer for layer in self.layers if layer.method is not None)

    @property
    def bits_per_weight(self) -> float:
        """True bits per weight over the quantized layers (16.0 when there is none)."""
        chosen = self.quantized
        weights = sum(layer.storage.num_weights for layer in chosen)
        return 8 * sum(layer.storage.total_bytes for layer in chosen) / weights if weights else 16.0

    @property
    def model_bits_per_weight(self) -> float:
        """Average bits over every stored parameter of the component, kept layers included."""
        return 8 * self.predicted_bytes / sum(_count(spec) for spec in self.component.tensors)


_HALF = torch.float16
METADATA: Mapping[str, str] = {"format": "pt"}  # what diffusers requires in a weight file's header


def load_recipe(source: str | Path, presets: Path) -> Recipe:
    """Returns a preset by its name, or the recipe in a JSON file.

    Raises:
        UserError: no such preset or file (the nearest preset is named), or a fault inside it.
    """
    named = presets / f"{source}.json"
    path = named if named.is_file() else Path(source)
    if not path.is_file():
        known = [item.stem for item in presets.glob("*.json")]
        raise UserError(
            f'no recipe "{source}".', where="recipe", remedy=nearest(str(source), known, "preset")
        )
    try:
        values: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("cannot be read.", where=str(path), remedy=f"{error}.") from error
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}:{error.colno}"
        raise UserError("is not JSON.", where=place, remedy=f"{error.msg}.") from error
    if not isinstance(values, dict):
        raise UserError(
            "is not a JSON object.", where=str(path), remedy='Start with {"version": 1, …}.'
        )
    return Recipe.from_json(cast(dict[str, Any], values), where=path.name)


def resolve(recipe: Recipe, component: Component) -> Plan:
    """Returns the plan of `recipe` for a component.

    Raises:
        UserError: a rule matches no layer, or a codec cannot take a layer's shape (the layer is
            named).
    """
    built = [rule.codec() for rule in recipe.rules]
    used: set[int] = set()
    planned: list[PlannedLayer] = []
    replaced: dict[str, tuple[TensorSpec, ...]] = {}
    for layer in component.layers:
        index = next(
            (
                i
                for i, rule in enumerate(recipe.rules)
                if fnmatch.fnmatchcase(layer.name, rule.pattern)
            ),
            None,
        )
        codec = None if index is None else built[index]
        if index is not None:
            used.add(index)
        if codec is None:
            kept = TensorSpec(
                name="weight",
                dtype=_HALF,
                shape=(layer.shape.out_features, layer.shape.in_features),
            )
            storage = Storage(tensors=(kept,), num_weights=layer.shape.count)
        else:
            try:
                codec.check(layer.shape)
            except UserError as error:
                raise UserError(error.what, where=layer.name, remedy=error.remedy) from error
            storage = codec.storage(layer.shape)
            replaced[f"{layer.name}.weight"] = tuple(
                TensorSpec(name=f"{layer.name}.{spec.name}", dtype=spec.dtype, shape=spec.shape)
                for spec in storage.tensors
            )
        planned.append(
            PlannedLayer(
                layer=layer,
                rule=index,
                method=None if codec is None else codec.name,
                params=None if codec is None else codec.params,
                storage=storage,
            )
        )
    idle = [
        rule.pattern
        for i, rule in enumerate(recipe.rules)
        if i not in used and rule.method is not None
    ]
    if idle and not replaced:
        raise UserError(
            f'no layer of the {component.name} matches "{idle[0]}".',
            where="recipe",
            remedy=f"Its first layer is called {component.layers[0].name}."
            if component.layers
            else "The component has no linear or convolution layer.",
        )
    halves = tuple(
        TensorSpec(
            name=spec.name,
            dtype=_HALF if spec.dtype.is_floating_point else spec.dtype,
            shape=spec.shape,
        )
        for spec in component.tensors
    )
    tensors = tuple(out for spec in halves for out in replaced.get(spec.name, (spec,)))
    return Plan(
        recipe=recipe,
        component=component,
        layers=tuple(planned),
        tensors=tensors,
        reference_bytes=safetensors_bytes(halves, METADATA),
        predicted_bytes=safetensors_bytes(tensors, METADATA),
    )


def _rule(values: object, where: str) -> Rule:
    if not isinstance(values, dict):
        raise UserError(
            "is not a JSON object.", where=where, remedy='Write {"pattern": "*", "method": …}.'
        )
    entry = cast(dict[str, Any], values)
    _known_keys(entry, _RULE_KEYS, where)
    pattern, method = entry.get("pattern"), entry.get("method")
    if not isinstance(pattern, str) or not pattern:
        raise UserError("there is no pattern.", where=where, remedy='Use "*" for every layer.')
    if method is None:
        if entry.get("params"):
            raise UserError(
                "params need a method.", where=where, remedy="Name a method or remove params."
            )
        return Rule(pattern=pattern)
    if not isinstance(method, str):
        raise UserError(f"method {method!r} is not a text.", where=where)
    params = entry.get("params", {})
    if not isinstance(params, dict):
        raise UserError("params is not a JSON object.", where=where)
    try:
        settings = codecs.get(method).settings
    except UserError as error:
        raise UserError(error.what, where=f"{where}.method", remedy=error.remedy) from error
    ready = settings.from_json(cast(dict[str, Any], params), where=f"{where}.params")
    return Rule(pattern=pattern, method=method, params=ready)


def _section(kind: type[S], values: Mapping[str, Any], key: str, where: str) -> S | None:
    given = values.get(key)
    if given is None:
        return None
    if not isinstance(given, dict):
        raise UserError(f"{key} is not a JSON object.", where=where, remedy="Write {} or settings.")
    return kind.from_json(cast(dict[str, Any], given), where=f"{where}.{key}")


def _known_keys(values: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in values:
        if key not in known:
            raise UserError(f'unknown key "{key}".', where=where, remedy=nearest(key, known, "key"))


def _count(spec: TensorSpec) -> int:
    return spec.num_bytes // spec.dtype.itemsize
