"""`vqdq methods`: every method with its settings, and how to get those not installed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vqdq.cli.terminal import Output, table
from vqdq.params import ParamInfo, describe

if TYPE_CHECKING:
    from vqdq.catalog import Method


def run(options: argparse.Namespace, output: Output) -> int:
    """Lists the methods."""
    from vqdq import activations, codecs
    from vqdq.activations.attention import AttentionParams
    from vqdq.catalog import activation_methods, methods

    del options
    weights: list[dict[str, Any]] = []
    lines = ["weights: --recipe", ""]
    for kind in methods():
        codec = codecs.get(kind.name)
        needs = "needed" if codec.needs_hessian else "used" if codec.uses_hessian else "not used"
        more = [f"  calibration: {needs}"]
        more += [] if kind.available else [f"  not installed: {kind.install}"]
        lines += _method_lines(kind, more)
        facts = {"available": kind.available, "install": kind.install, "calibration": needs}
        weights.append(_method_values(kind) | facts)
    inputs: list[dict[str, Any]] = []
    lines += ["activations: --activations NAME:setting=value,setting=value", ""]
    for kind in activation_methods():
        built = activations.create(kind.name)
        needs = "needed" if built.calibrated or built.smooths else "not used"
        lines += _method_lines(kind, [f"  ranges from prompts: {needs}"])
        inputs.append(_method_values(kind) | {"ranges": needs})
    lines += ["attention: --attention setting=value,setting=value", ""]
    lines += table(_setting_rows(describe(AttentionParams)))
    attention = [_setting_values(info) for info in describe(AttentionParams)]
    output.result({"methods": weights, "activations": inputs, "attention": attention}, lines)
    return 0


def _method_lines(kind: Method, more: list[str]) -> list[str]:
    head = [f"{kind.name}: {kind.title}", f"  {kind.summary}", f"  {kind.reference}"]
    return [*head, *more, *table(_setting_rows(kind.params)), ""]


def _method_values(kind: Method) -> dict[str, Any]:
    named = ("name", "title", "summary", "reference")
    values: dict[str, Any] = {name: getattr(kind, name) for name in named}
    return values | {"settings": [_setting_values(info) for info in kind.params]}


def _setting_rows(params: Sequence[ParamInfo]) -> list[tuple[str, str, str, str]]:
    rows = [("  setting", "default", "allowed", "")]
    for info in params:
        allowed = ", ".join(str(choice) for choice in info.choices)
        if not allowed and info.low is not None and info.high is not None:
            allowed = f"{info.low:g} to {info.high:g}"
        rows.append((f"  {info.name}", str(info.default), allowed, info.label))
    return rows


def _setting_values(info: ParamInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "default": info.default,
        "label": info.label,
        "help": info.help,
        "low": info.low,
        "high": info.high,
        "choices": list(info.choices),
        "reference": info.reference,
    }
