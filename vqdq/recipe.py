"""A recipe says what happens to which layer; a plan says what comes out, before work starts.

`resolve` is pure: recipe + shapes -> plan. It raises for every fault that can be known in advance,
so that a job that starts is a job that fits, and its predicted bytes equal the file that is
written.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from vqdq import activations
from vqdq.activations.attention import AttentionParams
from vqdq.activations.base import ActivationQuantizer, Site
from vqdq.calibration import CalibrationParams, FinetuneParams, RangeParams
from vqdq.codecs.base import Storage
from vqdq.errors import UserError
from vqdq.layers.attention import attention_layout, attention_sites
from vqdq.layers.inputs import input_layout
from vqdq.params import Params, is_text, nearest
from vqdq.rules import Rule, known_keys
from vqdq.sections import Section, section_of, sections
from vqdq.shapes import Component as Component
from vqdq.shapes import Layer as Layer
from vqdq.tensors import TensorSpec, sharded_bytes

FORMAT_VERSION = 1
S = TypeVar("S", bound=Params)
_SECTIONS = ("calibration", "finetune", "ranges", "attention")
_DECIDING_KEYS = ("version", "seed", "rules", *_SECTIONS, "components")
_RECIPE_KEYS = ("name", "title", "description", *_DECIDING_KEYS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Ordered rules with a name and a seed: everything that decides the compressed bytes.

    Attributes:
        calibration: how the layers' inputs are sampled; None encodes from the weights alone.
        finetune: how the result learns from the full-precision model; None leaves it as encoded.
        ranges: how input ranges are collected; None when no rule needs them.
        attention: how scores, q, k and v are quantized; None leaves attention as it is.
        components: what happens to the components beside the denoiser; those that no section speaks
            of are kept as they are.
    """

    name: str
    rules: tuple[Rule, ...]
    title: str = ""
    description: str = ""
    seed: int = 0
    calibration: CalibrationParams | None = None
    finetune: FinetuneParams | None = None
    ranges: RangeParams | None = None
    attention: AttentionParams | None = None
    components: tuple[Section, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the recipe as JSON values, every setting written out."""
        extra = {
            "calibration": self.calibration,
            "finetune": self.finetune,
            "ranges": self.ranges,
            "attention": self.attention,
        }
        return {
            "version": FORMAT_VERSION,
            "name": self.name,
            "title": self.title,
            "description": self.description,
            "seed": self.seed,
            "rules": [rule.to_json() for rule in self.rules],
            **{key: value.to_json() for key, value in extra.items() if value is not None},
            **self._other_components(),
        }

    def _other_components(self) -> dict[str, Any]:
        if not self.components:
            return {}
        return {"components": {part.pattern: part.to_json() for part in self.components}}

    def of_component(self, name: str) -> Recipe | None:
        """Returns the recipe of a component beside the denoiser; None: it is kept as it is."""
        part = section_of(self.components, name)
        if part is None:
            return None
        return Recipe(name=self.name, title=self.title, seed=self.seed, rules=part.rules)

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
        version = values.get("version", FORMAT_VERSION)
        if version != FORMAT_VERSION:  # first: a newer recipe has keys that are not known here
            raise UserError(
                f"version {version!r} is not supported.",
                where=where,
                remedy=f"This program reads version {FORMAT_VERSION}: use the one that wrote it.",
            )
        known_keys(values, _RECIPE_KEYS, where)
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
            if not is_text(text):
                raise UserError(f"{text!r} is not a text.", where=f"{where}.{key}")
        ready = [
            Rule.from_json(rule, f"{where}.rules[{i}]")
            for i, rule in enumerate(cast(list[Any], rules))
        ]
        return cls(
            name=texts["name"] or "unnamed",
            rules=tuple(ready),
            title=texts["title"],
            description=texts["description"],
            seed=seed,
            calibration=_section(CalibrationParams, values, "calibration", where),
            finetune=_section(FinetuneParams, values, "finetune", where),
            ranges=_section(RangeParams, values, "ranges", where),
            attention=_section(AttentionParams, values, "attention", where),
            components=sections(values.get("components", {}), f"{where}.components"),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedLayer:
    """One layer of a plan: the winning rule, the method (None = kept in 16 bits), its storage.

    `activation` is the quantizer of its input (None = kept); `inputs` what it stores beside the
    weight, by the names in the file; `spared`: the rule has a quantizer, but the layer is so small
    that integers would be no faster, and its input stays as it is.
    """

    layer: Layer
    rule: int | None
    method: str | None
    params: Params | None
    storage: Storage
    activation: str | None = None
    activation_params: Params | None = None
    inputs: tuple[TensorSpec, ...] = ()
    spared: bool = False

    @property
    def bits_per_weight(self) -> float:
        """True bits per weight of this layer, everything counted."""
        return self.storage.bits_per_weight

    def quantizer(self) -> ActivationQuantizer[Any] | None:
        """Returns the quantizer of the layer's input, or None."""
        if self.activation is None:
            return None
        return activations.create(self.activation, self.activation_params)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What a recipe does to a component, exactly.

    Attributes:
        recipe: the recipe resolved.
        component: the shapes it was resolved for.
        layers: one entry per candidate layer, in the component's order.
        tensors: every tensor of the file that will be written.
        reference_bytes: size of the component's 16-bit weight file or files.
        predicted_bytes: size of the compressed weight file or files; theirs by construction.
        attention: where q, k and v are rounded, "<attention>.q" … -> site.
        others: the plans of the components beside the denoiser that the recipe speaks of; their
            bytes are their own and in none of the figures here but `total_bytes`.
    """

    recipe: Recipe
    component: Component
    layers: tuple[PlannedLayer, ...]
    tensors: tuple[TensorSpec, ...]
    reference_bytes: int
    predicted_bytes: int
    attention: Mapping[str, Site] = field(default_factory=dict[str, Site])
    others: tuple[Plan, ...] = ()

    @property
    def total_bytes(self) -> int:
        """Predicted size of all weight files that will be written."""
        return self.predicted_bytes + sum(other.predicted_bytes for other in self.others)

    @property
    def quantized(self) -> tuple[PlannedLayer, ...]:
        """The layers that some codec encodes."""
        return tuple(layer for layer in self.layers if layer.method is not None)

    @property
    def activated(self) -> tuple[PlannedLayer, ...]:
        """The layers whose input is quantized."""
        return tuple(layer for layer in self.layers if layer.activation is not None)

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
    known = [item.stem for item in presets.glob("*.json")]
    path = presets / f"{source}.json" if str(source) in known else Path(source)
    if not os.path.isfile(path):  # that of pathlib raises for a name that is too long
        raise UserError(
            f'no recipe "{source}".', where="recipe", remedy=nearest(str(source), known, "preset")
        )
    try:
        values: object = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        place = f"{path}:{error.lineno}:{error.colno}"
        raise UserError("is not JSON.", where=place, remedy=f"{error.msg}.") from error
    except (OSError, ValueError, RecursionError) as error:  # no text, a number too long, too deep
        raise UserError("cannot be read.", where=str(path), remedy=f"{error}.") from error
    if not isinstance(values, dict):
        raise UserError(
            "is not a JSON object.", where=str(path), remedy='Start with {"version": 1, …}.'
        )
    return Recipe.from_json(cast(dict[str, Any], values), where=path.name)


def resolve(recipe: Recipe, component: Component, others: Sequence[Component] = ()) -> Plan:
    """Returns the plan of `recipe` for a denoiser and for the other components it speaks of.

    Args:
        others: components that some section of the recipe matches (`vqdq.sections.chosen`).

    Raises:
        UserError: a rule matches no layer, or a codec cannot take a layer's shape (the layer is
            named).
    """
    plans: list[Plan] = []
    for other in others:
        own = recipe.of_component(other.name)
        assert own is not None, other.name
        plans.append(_resolved(own, other))
    return replace(_resolved(recipe, component), others=tuple(plans))


def _resolved(recipe: Recipe, component: Component) -> Plan:
    built = [rule.codec() for rule in recipe.rules]
    quantizers = [rule.quantizer() for rule in recipe.rules]
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
        quantizer = None if index is None else quantizers[index]
        spared = quantizer is not None and quantizer.spares(layer.site, layer.shape.out_features)
        quantizer = None if spared else quantizer
        inputs = () if quantizer is None else input_layout(quantizer, layer.site)
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
                for spec in (*storage.tensors, *inputs)
            )
        planned.append(
            PlannedLayer(
                layer=layer,
                rule=index,
                method=None if codec is None else codec.name,
                params=None if codec is None else codec.params,
                storage=storage,
                activation=None if quantizer is None else quantizer.name,
                activation_params=None if quantizer is None else quantizer.params,
                inputs=inputs,
                spared=spared,
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
    if component.guarded and replaced:
        tensors += (guard(item.layer.name for item in planned if item.method is not None),)
    sites: dict[str, Site] = {}
    if recipe.attention is not None:
        positions = {layer.name: layer.positions for layer in component.layers}
        sites = attention_sites(component.attentions, recipe.attention, positions)
        tensors += attention_layout(recipe.attention, sites)
    return Plan(
        recipe=recipe,
        component=component,
        layers=tuple(planned),
        tensors=tensors,
        reference_bytes=sharded_bytes(halves, METADATA),
        predicted_bytes=sharded_bytes(tensors, METADATA),
        attention=sites,
    )


def guard(layers: Iterable[str]) -> TensorSpec:
    """Returns the empty tensor of a guarded component with these packed layers."""
    return TensorSpec(name=f"{min(layers)}.weight", dtype=_HALF, shape=(0,))


def is_guard(spec: TensorSpec) -> bool:
    """Returns whether a tensor is there only to be refused (`Component.guarded`)."""
    return spec.shape == (0,)


def _section(kind: type[S], values: Mapping[str, Any], key: str, where: str) -> S | None:
    given = values.get(key)
    if given is None:
        return None
    if not isinstance(given, dict):
        raise UserError(f"{key} is not a JSON object.", where=where, remedy="Write {} or settings.")
    return kind.from_json(cast(dict[str, Any], given), where=f"{where}.{key}")


def _count(spec: TensorSpec) -> int:
    return spec.num_bytes // spec.dtype.itemsize
