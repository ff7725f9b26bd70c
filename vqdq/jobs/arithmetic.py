"""How a model's layers are computed, counted: in integers, in 8-bit floats, simulated, or in 16
bits, and why.

`measured` asks the layers of a loaded model. `expected` asks a plan, before there is anything to
load: it knows the shapes and the methods, not yet the groups that calibration will find.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from vqdq.activations.base import Axis, Site, axis_at
from vqdq.jobs.results import ArithmeticResult
from vqdq.layers.attention import attention_execution
from vqdq.layers.execution import Execution, on_processor
from vqdq.layers.matrix import kind_of
from vqdq.layers.quantized import QuantizedLayer
from vqdq.recipe import Plan

_SPARED = Execution(kind="16-bit", reason="so small that 8 bits are no faster")


def measured(denoiser: nn.Module) -> ArithmeticResult | None:
    """Returns how the layers of a loaded denoiser are computed; None when nothing is quantized."""
    layers = [layer for layer in denoiser.modules() if _counts(layer)]
    given = [
        layer.input.execution(layer)
        for layer in layers
        if isinstance(layer, QuantizedLayer) and layer.input is not None
    ]
    config = getattr(getattr(denoiser, "config", None), "quantization_config", None)
    spared = [entry for entry in getattr(config, "layers", {}).values() if entry.get("spared")]
    given += [_SPARED] * len(spared)
    attention = attention_execution(denoiser).values()
    if not given and not attention:
        return None
    return counted(given, attention, len(layers))


def expected(plan: Plan) -> ArithmeticResult | None:
    """Returns how the layers of a plan should be computed on this machine's processor; None as
    above.

    Attention layers are not part of a plan: they count as one when they are quantized.
    """
    recipe = plan.recipe
    if not plan.activated and recipe.attention is None:
        return None
    given: list[Execution] = []
    known: dict[tuple[Any, Site], Axis] = {}
    for planned in plan.activated:
        quantizer, site = planned.quantizer(), planned.layer.site
        assert quantizer is not None
        key = (planned.activation_params, site)
        if key not in known:
            known[key] = axis_at(quantizer, site)
        why = on_processor(quantizer.code, known[key])
        given.append(Execution(kind="simulated" if why else quantizer.code, reason=why))
    given += [_SPARED] * sum(planned.spared for planned in plan.layers)
    attention = [] if recipe.attention is None else [Execution(kind="simulated")]
    return counted(given, attention, len(plan.layers))


def in_words(found: ArithmeticResult) -> str:
    """Returns the counts as sentences: what is computed in 8 bits, what is simulated, and why."""
    total, parts = found["layers"], [_eight_bit_words(found)]
    if found["simulated"]:
        verb = "is" if found["simulated"] == 1 else "are"
        others = {k: v for k, v in found["reasons"].items() if k != _SPARED.reason}
        parts.append(f"{found['simulated']} {verb} simulated in float{_why(others)}")
    if found["sixteen_bit"]:
        verb = "takes its" if found["sixteen_bit"] == 1 else "take their"
        small = found["reasons"].get(_SPARED.reason, 0)
        why = f" ({small} of them {_SPARED.reason})" if small else ""
        parts.append(f"{found['sixteen_bit']} {verb} input in 16 or 32 bits{why}")
    said = f"{'; '.join(part for part in parts if part)}." if total else ""
    said = said[:1].upper() + said[1:]
    if found["rounded_weights"]:
        said += (
            f" {found['rounded_weights']} of them use the stored weight rounded to 8 bits a row."
        )
    if found["attention_simulated"]:
        said += " Attention is simulated."
    return said.strip()


def price(found: ArithmeticResult) -> str:
    """Returns what that means for speed, in one sentence."""
    floats = found.get("fp8", 0)
    if not found["integer"] and not floats:
        return "Simulated layers show what the picture would be, and make it slower, not faster."
    if not found["integer"]:
        return "What 8-bit floats save on a card has not been measured yet."
    slow = found["simulated"] or found["attention_simulated"]
    rest = "; what is simulated costs time" if slow else ""
    return (
        f"Integer products save time in wide layers on a CPU{rest}: Compare measures both. What"
        " they save on a GPU has not been measured yet."
    )


def _eight_bit_words(found: ArithmeticResult) -> str:
    total, floats = found["layers"], found.get("fp8", 0)
    kinds = ((found["integer"], "integer arithmetic"), (floats, "8-bit floats"))
    parts = [
        f"{count} of {total} layers run in {kind} on this machine" for count, kind in kinds if count
    ]
    if not parts and found["simulated"]:
        return f"none of {total} layers runs in 8-bit arithmetic on this machine"
    return "; ".join(parts)


def _why(reasons: Mapping[str, int]) -> str:
    """The most frequent reason in brackets."""
    first = next((reason for reason in reasons if reason), "")
    more = len([reason for reason in reasons if reason]) - 1
    return f" ({first}{f'; {more} more reasons' if more > 0 else ''})" if first else ""


def counted(
    layers: Iterable[Execution], attention: Iterable[Execution], total: int
) -> ArithmeticResult:
    """Returns the counts of executions among `total` layers that could be quantized."""
    found = list(layers)
    kinds = Counter(each.kind for each in found)
    reasons = Counter(each.reason for each in found if each.kind in ("simulated", "16-bit"))
    scores = list(attention)
    return ArithmeticResult(
        layers=total,
        integer=kinds["integer"],
        fp8=kinds["fp8"],
        simulated=kinds["simulated"],
        sixteen_bit=total - kinds["integer"] - kinds["fp8"] - kinds["simulated"],
        rounded_weights=sum(not each.exact for each in found if each.kind != "16-bit"),
        reasons=dict(reasons.most_common()),
        attention=len(scores),
        attention_simulated=sum(each.kind == "simulated" for each in scores),
    )


def _counts(module: nn.Module) -> bool:
    return isinstance(module, QuantizedLayer) or kind_of(module) is not None
