"""The model card of a compressed folder: front matter for the hub, and what was measured."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from vqdq.models.checkpoint import LayerResult, Learnt
from vqdq.models.sources import Source
from vqdq.quantities import size
from vqdq.recipe import Plan

_LICENCE = re.compile(r"^license(?:_name|_link)?:[ \t]*\S.*$", re.MULTILINE)


def card(source: Source, plan: Plan, layers: Sequence[LayerResult], learnt: Learnt | None) -> str:
    """Returns the text of README.md; the same whenever and wherever it was made."""
    base = source.name
    lines = ["---", "library_name: diffusers", "pipeline_tag: text-to-image"]
    lines += _licence(source.folder / "README.md")
    if source.hub_name:
        lines.append(f"base_model: {source.hub_name}")
        lines.append(f"base_model_revision: {source.revision}")
    lines += ["base_model_relation: quantized", "tags:", "  - vqdq"]
    lines += [f"  - {round(plan.bits_per_weight, 2):g}-bit", "---", ""]
    methods = sorted({layer.method for layer in layers if layer.method is not None})
    kept = sum(layer.method is None for layer in layers)
    ratio = plan.reference_bytes / plan.predicted_bytes
    lines += [
        f"# {base}, {plan.recipe.title or plan.recipe.name}",
        "",
        f"The {plan.component.name} of {base}{_at(source)}, compressed with VQDQ to "
        f"{plan.bits_per_weight:.3g} bits per weight.",
        "",
        "| | |",
        "| --- | --- |",
        f"| Weight file | {size(plan.predicted_bytes)} instead of "
        f"{size(plan.reference_bytes)} in 16 bits ({ratio:.3g} times smaller) |",
        f"| Method | {', '.join(methods) or 'none'} |",
        f"| Layers | {len(layers) - kept} packed, {kept} kept in 16 bits |",
        f"| Bits per weight | {plan.bits_per_weight:.4g} over the packed layers, "
        "codes, scales and codebooks counted |",
        *(
            f"| Also compressed | {other.component.name}: {size(other.predicted_bytes)} "
            f"instead of {size(other.reference_bytes)}, {other.bits_per_weight:.4g} bits each |"
            for other in plan.others
        ),
        f"| Activations | {_activations(layers)} |",
        f"| Calibration | {_calibration(plan)} |",
        f"| Fine-tuning | {_learning(learnt)} |",
        f"| Recipe | `recipe.json` ({plan.recipe.name}, seed {plan.recipe.seed}) |",
        "",
        "## Use",
        "",
        "```python",
        "import vqdq  # teaches diffusers the format",
        "from diffusers import DiffusionPipeline",
        "",
        'pipeline = DiffusionPipeline.from_pretrained("path/to/this/folder")',
        "```",
        "",
        "Without `import vqdq` diffusers refuses the folder. `vqdq verify` checks its checksums",
        "and decodes every layer; the error of each layer stands in `vqdq.json`.",
        *(_TEXT_ENCODERS if any(other.component.guarded for other in plan.others) else ()),
        *_lacking(source),
        "",
        "Everything but the listed layers is as in the base model, whose terms of use apply.",
    ]
    return "\n".join(lines) + "\n"


_TEXT_ENCODERS = (
    "A text encoder that is opened by transformers alone fails too, with a size mismatch at one",
    "empty tensor that is there for this: transformers would only warn of a quantization it does",
    "not know, and fill the layers with random numbers. `ignore_mismatched_sizes` takes that away.",
)


def _lacking(source: Source) -> list[str]:
    """What of the pipeline is not in the folder, and how it gets there."""
    if not source.missing:
        return []
    names = " and ".join(f"`{name}/`" for name in source.missing)
    return [
        "",
        "## What is missing",
        "",
        f"The model was made from a single file without {', '.join(source.missing)}: copy {names}",
        "from a model of the same family into this folder before you open it, or pass those",
        "components to `from_pretrained`.",
    ]


def _at(source: Source) -> str:
    return f" (commit {source.revision})" if source.revision else ""


def _activations(layers: Sequence[LayerResult]) -> str:
    kinds = Counter(
        (layer.activation, layer.activation_bits) for layer in layers if layer.activation
    )
    if not kinds:
        return "as they come"
    parts = [f"{name}, {bits} bits ({count} layers)" for (name, bits), count in kinds.items()]
    return f"{'; '.join(parts)}, the inputs of the other {len(layers) - kinds.total()} as they come"


def _calibration(plan: Plan) -> str:
    params = plan.recipe.calibration
    return "none" if params is None else f"{params.prompts} prompts, {params.steps} steps"


def _learning(learnt: Learnt | None) -> str:
    if learnt is None:
        return "none"
    return (
        f"{learnt.steps} steps; noise prediction on held-out calls "
        f"{learnt.before_db:.1f} dB before, {learnt.after_db:.1f} dB after"
    )


def _licence(path: Path) -> list[str]:
    """Returns the lines of a card's front matter that say under which licence a model is."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    front = text.split("---")[1] if text.startswith("---") and text.count("---") > 1 else ""
    return [line.rstrip() for line in _LICENCE.findall(front)]
