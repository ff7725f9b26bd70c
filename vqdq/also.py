"""A recipe that speaks of the components beside the denoiser: what a flag or a control adds to it.

The command line, the page and what is offered for a card all come here, so that the same wish has
one recipe and one name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vqdq import codecs, notation
from vqdq.errors import UserError
from vqdq.params import Params
from vqdq.recipe import Plan, Recipe
from vqdq.rules import Rule
from vqdq.sections import Section, sections

TEXT_ENCODERS = "text_encoder*=trellis:bits=4"
DECODER = "vae=uniform:bits=8"
"""What is offered: wishes as `also` takes them, the one that saves most first."""

# Components that encode and decode pictures: only what decodes is packed. Its ends stay as they
# are: a first and a last layer of a few channels weigh nothing and show everything.
_AUTOENCODERS = ("vae", "movq", "vqgan")
_DECODER = ("decoder.*", "post_quant_conv")
_ENDS = ("decoder.conv_in", "decoder.conv_out")


def also(recipe: Recipe, wishes: Sequence[str]) -> Recipe:
    """Returns `recipe` with what wishes like "text_encoder*=trellis:bits=4" add to it.

    A wish takes the place of what the recipe said of the same components.

    Raises:
        UserError: a wish of another form, an unknown method or setting, or one that only the
            denoiser can have.
    """
    for wish in wishes:
        pattern, equals, text = wish.partition("=")
        name, colon, settings = text.partition(":")
        if not pattern or not equals or not name:
            raise UserError(
                f'"{wish}" is not "component=method".',
                where="--also",
                remedy="Write it like text_encoder=trellis:bits=4.",
            )
        try:
            kind = codecs.get(name)
        except UserError as error:
            raise UserError(error.what, where="--also", remedy=error.remedy) from error
        words = settings.split(",") if colon else []
        recipe = with_component(
            recipe, pattern, name, notation.read(kind.settings, words, where="--also")
        )
    return recipe


def pattern_of(wish: str) -> str:
    """Returns the components that a wish is about, as a pattern."""
    return wish.partition("=")[0]


def with_component(recipe: Recipe, pattern: str, method: str, params: Params) -> Recipe:
    """Returns `recipe` with this method for the components that `pattern` names.

    All their linear and convolution layers, of an autoencoder those of its decoder.

    Raises:
        UserError: a method that needs calibration.
    """
    rules = tuple(Rule(pattern=layer, method=method, params=params) for layer in _layers(pattern))
    if pattern.rstrip("*") in _AUTOENCODERS:
        rules = (*(Rule(pattern=end) for end in _ENDS), *rules)
    changed = Section(pattern=pattern, rules=rules)
    others = [part for part in recipe.components if part.pattern != pattern]
    given = {part.pattern: part.to_json() for part in (*others, changed)}
    components = sections(given, "components")
    before = _suffix(recipe.components)
    words = ", ".join(part.pattern for part in components)
    title = recipe.title.partition("; also ")[0]
    return replace(
        recipe,
        name=recipe.name.removesuffix(before) + _suffix(components),
        title=title and f"{title}; also {words}",
        components=components,
    )


def other_values(plan: Plan) -> list[dict[str, object]]:
    """Returns what a program is told about the components beside the denoiser."""
    return [
        {
            "component": other.component.name,
            "predicted_bytes": other.predicted_bytes,
            "reference_bytes": other.reference_bytes,
            "bits_per_weight": other.bits_per_weight,
            "quantized_layers": len(other.quantized),
            "layers": len(other.layers),
        }
        for other in plan.others
    ]


def _layers(pattern: str) -> Sequence[str]:
    return _DECODER if pattern.rstrip("*") in _AUTOENCODERS else ("*",)


def _suffix(given: Sequence[Section]) -> str:
    names = sorted(part.pattern.replace("*", "") for part in given)
    return f"-also-{'-'.join(names)}" if names else ""
