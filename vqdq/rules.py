"""One rule of a recipe: which layers, which codec for the weights, which levels for the inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from vqdq import activations, codecs
from vqdq.activations.base import ActivationQuantizer
from vqdq.codecs.base import Codec
from vqdq.errors import UserError
from vqdq.params import Params, is_text, nearest

_RULE_KEYS = ("pattern", "method", "params", "activation")
_ACTIVATION_KEYS = ("method", "params")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """`pattern` -> method. The first rule that matches a layer decides; no match stays 16-bit.

    Attributes:
        pattern: shell-style glob over the layer's full dotted name ("*.attn2.*", "conv_in").
        method: registered codec, or None to keep the layer in 16 bits.
        params: its settings; None exactly when `method` is None.
        activation: registered activation quantizer of the layer's input, or None to leave it; only
            beside a method (codec "half" keeps the weight in 16 bits).
        activation_params: its settings; None exactly when `activation` is None.
    """

    pattern: str
    method: str | None = None
    params: Params | None = None
    activation: str | None = None
    activation_params: Params | None = None

    def codec(self) -> Codec[Any] | None:
        """Returns the codec of this rule, or None when it keeps layers as they are."""
        return None if self.method is None else codecs.create(self.method, self.params)

    def quantizer(self) -> ActivationQuantizer[Any] | None:
        """Returns the activation quantizer of this rule, or None."""
        if self.activation is None:
            return None
        return activations.create(self.activation, self.activation_params)

    def to_json(self) -> dict[str, Any]:
        """Returns the rule as JSON values, every setting written out."""
        entry: dict[str, Any] = {"pattern": self.pattern, "method": self.method}
        if self.params is not None:
            entry["params"] = self.params.to_json()
        if self.activation is not None and self.activation_params is not None:
            settings = self.activation_params.to_json()
            entry["activation"] = {"method": self.activation, "params": settings}
        return entry

    @classmethod
    def from_json(cls, values: object, where: str) -> Rule:
        """Returns the rule in `values`.

        Raises:
            UserError: an unknown key, method or setting (the nearest is named), or a bad value.
        """
        if not isinstance(values, dict):
            raise UserError(
                "is not a JSON object.", where=where, remedy='Write {"pattern": "*", "method": …}.'
            )
        entry = cast(dict[str, Any], values)
        known_keys(entry, _RULE_KEYS, where)
        pattern = entry.get("pattern")
        if not is_text(pattern) or not pattern:
            raise UserError("there is no pattern.", where=where, remedy='Use "*" for every layer.')
        method, params = _method(entry, where, lambda name: codecs.get(name).settings)
        activation, settings = None, None
        given = entry.get("activation")
        if given is not None:
            place = f"{where}.activation"
            if not isinstance(given, dict):
                raise UserError(
                    "is not a JSON object.", where=place, remedy='Write {"method": "dynamic"}.'
                )
            if method is None:
                raise UserError(
                    "a layer without a method keeps its input too.",
                    where=place,
                    remedy='Use the method "half" to keep the weight in 16 bits.',
                )
            section = cast(dict[str, Any], given)
            known_keys(section, _ACTIVATION_KEYS, place)
            activation, settings = _method(
                section, place, lambda name: activations.get(name).settings
            )
        return cls(
            pattern=pattern,
            method=method,
            params=params,
            activation=activation,
            activation_params=settings,
        )


def _method(
    entry: Mapping[str, Any], where: str, settings_of: Callable[[str], type[Params]]
) -> tuple[str | None, Params | None]:
    """Returns the method and the settings of a JSON object, (None, None) when it names none."""
    method, params = entry.get("method"), entry.get("params", {})
    if method is None:
        if params:
            raise UserError(
                "params need a method.", where=where, remedy="Name a method or remove params."
            )
        return None, None
    if not isinstance(method, str):
        raise UserError(f"method {method!r} is not a text.", where=where)
    if not isinstance(params, dict):
        raise UserError("params is not a JSON object.", where=where)
    try:
        settings = settings_of(method)
    except UserError as error:
        raise UserError(error.what, where=f"{where}.method", remedy=error.remedy) from error
    return method, settings.from_json(cast(dict[str, Any], params), where=f"{where}.params")


def known_keys(values: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raises `UserError` for a key that is not among `known`; the nearest is named."""
    for key in values:
        if key not in known:
            raise UserError(f'unknown key "{key}".', where=where, remedy=nearest(key, known, "key"))
