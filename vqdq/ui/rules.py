"""Layer rules as lines of text: `*.attn2.* = trellis bits=4 | dynamic bits=8`, `conv_in = keep`.

Behind the bar stands what rounds the layer's input. Text can be copied, sent and read aloud, which
a grid of drop-downs cannot. `parse` and `render` are inverse, so a preset opens as lines and lines
become the recipe that the program saves.
"""

from __future__ import annotations

from vqdq import activations, codecs, notation
from vqdq.errors import UserError
from vqdq.params import Params
from vqdq.recipe import Recipe
from vqdq.rules import Rule

KEEP = "keep"
EXAMPLE = "conv_in = keep\n*.attn2.* = trellis bits=4 | dynamic bits=8"


def parse(text: str) -> tuple[Rule, ...]:
    """Returns the rules in `text`, one a line; empty lines and `# comments` are skipped.

    Raises:
        UserError: naming the line, the fault and what would be right.
    """
    rules: list[Rule] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].strip()
        if words:
            rules.append(_rule(words, f"layer rules, line {number}"))
    return tuple(rules)


def render(rules: tuple[Rule, ...]) -> str:
    """Returns the text of `rules`; settings at their default are left out."""
    return "\n".join(_line(rule) for rule in rules)


def split(recipe: Recipe) -> tuple[tuple[Rule, ...], Rule]:
    """Returns the special rules of a recipe and the general one, which takes all other layers.

    Raises:
        UserError: the recipe has no general rule (pattern `*`) with a method.
    """
    *special, general = recipe.rules
    if general.pattern != "*" or general.method is None:
        raise UserError(
            "the last rule is not for all layers.",
            where=recipe.name,
            remedy='End the recipe with {"pattern": "*", "method": …}.',
        )
    return tuple(special), general


def _rule(text: str, where: str) -> Rule:
    pattern, equals, action = text.partition("=")
    weights, bar, inputs = action.partition("|")
    pattern, (method, *settings) = pattern.strip(), weights.split() or [""]
    if not equals or not pattern or not method or (bar and not inputs.strip()):
        raise UserError(
            f'"{text[:80]}" is not "pattern = method" or "pattern = method | activation method".',
            where=where,
            remedy=f'Write it like "{EXAMPLE.splitlines()[1]}" or "conv_in = {KEEP}".',
        )
    if method == KEEP:
        if settings or bar:
            raise UserError(
                f'"{KEEP}" takes no settings and leaves the input alone.',
                where=where,
                remedy=f'Remove "{settings[0]}".'
                if settings
                else 'Write "half" to keep the weight in 16 bits and quantize the input.',
            )
        return Rule(pattern=pattern)
    try:
        params = notation.read(codecs.get(method).settings, settings)
        activation, chosen = _activation(inputs.split())
    except UserError as error:
        raise UserError(error.what, where=where, remedy=error.remedy) from error
    return Rule(
        pattern=pattern,
        method=method,
        params=params,
        activation=activation,
        activation_params=chosen,
    )


def _activation(words: list[str]) -> tuple[str, Params] | tuple[None, None]:
    if not words:
        return None, None
    return words[0], notation.read(activations.get(words[0]).settings, words[1:])


def _line(rule: Rule) -> str:
    if rule.method is None:
        return f"{rule.pattern} = {KEEP}"
    line = " ".join((f"{rule.pattern} = {rule.method}", *notation.words(rule.params)))
    if rule.activation is None:
        return line
    return " ".join((line, "|", rule.activation, *notation.words(rule.activation_params)))
