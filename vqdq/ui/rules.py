"""Layer rules as lines of text: `*.attn2.* = trellis bits=4`, `conv_in = keep`.

Text can be copied, sent and read aloud, which a grid of drop-downs cannot. `parse` and `render`
are inverse,
so a preset opens as lines and lines become the recipe that the program saves.
"""

from __future__ import annotations

from vqdq import codecs
from vqdq.errors import UserError
from vqdq.params import ParamInfo, Params, Value, describe
from vqdq.recipe import Recipe
from vqdq.rules import Rule

KEEP = "keep"
EXAMPLE = "conv_in = keep\n*.attn2.* = trellis bits=4"


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


def _rule(words: str, where: str) -> Rule:
    pattern, equals, action = words.partition("=")
    pattern, (method, *settings) = pattern.strip(), action.split() or [""]
    if not equals or not pattern or not method:
        raise UserError(
            f'"{words[:80]}" is not "pattern = method".',
            where=where,
            remedy=f'Write it like "{EXAMPLE.splitlines()[1]}" or "conv_in = {KEEP}".',
        )
    if method == KEEP:
        if settings:
            raise UserError(
                f'"{KEEP}" takes no settings.', where=where, remedy=f"Remove {settings[0]}."
            )
        return Rule(pattern=pattern)
    try:
        params = codecs.get(method).settings
        known = {info.name: info for info in describe(params)}
        values = {name: _value(known.get(name), text) for name, text in map(_pair, settings)}
        return Rule(pattern=pattern, method=method, params=params.from_json(values))
    except UserError as error:
        raise UserError(error.what, where=where, remedy=error.remedy) from error


def _pair(setting: str) -> tuple[str, str]:
    name, equals, value = setting.partition("=")
    if not equals or not name or not value:
        raise UserError(
            f'"{setting}" is not "name=value".',
            remedy="Write settings like bits=4, without spaces.",
        )
    return name, value


def _value(info: ParamInfo | None, text: str) -> Value:
    """The value that `text` means for the setting; unknown settings are refused by `Params`."""
    if info is None or info.kind is str:
        return text
    if info.kind is bool:
        if text.lower() in ("true", "yes", "on", "false", "no", "off"):
            return text.lower() in ("true", "yes", "on")
        return text
    try:
        number = float(text)
    except ValueError:
        return text
    return int(number) if info.kind is int and number.is_integer() else number


def _line(rule: Rule) -> str:
    if rule.method is None:
        return f"{rule.pattern} = {KEEP}"
    return " ".join((f"{rule.pattern} = {rule.method}", *_settings(rule.params)))


def _settings(params: Params | None) -> list[str]:
    if params is None:
        return []
    return [
        f"{info.name}={getattr(params, info.name)}"
        for info in describe(type(params))
        if getattr(params, info.name) != info.default
    ]
