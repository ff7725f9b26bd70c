"""The format on disk: an ordinary diffusers folder that says how its denoiser is packed.

    model_index.json                     unchanged
    unet/config.json                     + quantization_config {quant_method: "vqdq", recipe, …}
    unet/diffusion_pytorch_model.safetensors   <layer>.<tensor> packed; the rest in 16 bits
    recipe.json                          the recipe, every setting written out
    vqdq.json                            what was measured: bytes, bits, the error of each layer
    SHA256SUMS                           of every other file, as `sha256sum -c` reads it
    README.md                            model card
    …                                    the other components, as they were

Nothing in it depends on the time, the machine or on how often the work was interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from vqdq.codecs.base import Packed
from vqdq.durable import sha256, write_text
from vqdq.errors import UserError
from vqdq.models.packed_config import FORMAT_VERSION, Method, VqdqConfig
from vqdq.models.parts import parts
from vqdq.models.pipelines import load
from vqdq.models.sources import Source, locate
from vqdq.models.weights import WeightFile
from vqdq.progress import Event, Report, silent
from vqdq.recipe import Plan
from vqdq.tensors import TensorSpec

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"
SUMS = "SHA256SUMS"
FACTS = "vqdq.json"
RECIPE = "recipe.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerResult:
    """What happened to one layer.

    Attributes:
        name: full dotted name.
        method: codec, or None for a layer kept in 16 bits.
        bits_per_weight: true bits, everything counted.
        error_db: 10 log10(‖W-Ŵ‖² / ‖W‖²) as encoded; None when nothing was lost.
        output_error_db: the same for its outputs on the calibration inputs; None without.
        bytes, reference_bytes: of its weight, as stored and in 16 bits.
        seconds: wall time of its encoding; 0 when it was not encoded.
        activation: how its input is quantized, to `activation_bits`, with `input_bytes` of stored
            parameters; None, None and 0 where it is not. Whether the products then run in integers
            depends on the machine (`vqdq.layers.execution`), so it is not said here.
    """

    name: str
    method: str | None
    bits_per_weight: float
    error_db: float | None
    output_error_db: float | None
    bytes: int
    reference_bytes: int
    seconds: float
    activation: str | None = None
    activation_bits: int | None = None
    input_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What `verify` found; `ok` when there is no problem.

    Attributes:
        folder: what was checked.
        files: files whose checksums were compared.
        layers: packed layers that were decoded.
        problems: one sentence each, with its place.
    """

    folder: Path
    files: int
    layers: int
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems


def quantization_config(plan: Plan) -> dict[str, Any]:
    """Returns the `quantization_config` of a planned component, as JSON values."""
    methods: list[dict[str, Any]] = []
    inputs: list[dict[str, Any]] = []
    layers: dict[str, dict[str, Any]] = {}
    for planned in plan.quantized:
        assert planned.params is not None
        entry = {"method": planned.method, "params": planned.params.to_json()}
        if entry not in methods:
            methods.append(entry)
        shape = planned.layer.shape
        layers[planned.layer.name] = {
            "codec": methods.index(entry),
            "shape": [shape.out_features, shape.in_features],
            "taps": shape.taps,
        }
        if planned.spared:
            layers[planned.layer.name]["spared"] = True
        if planned.activation is None or planned.activation_params is None:
            continue
        given = {"method": planned.activation, "params": planned.activation_params.to_json()}
        if given not in inputs:
            inputs.append(given)
        layers[planned.layer.name] |= {
            "activation": inputs.index(given),
            "positions": planned.layer.positions,
        }
    return {
        "quant_method": "vqdq",
        "version": FORMAT_VERSION,
        "recipe": plan.recipe.to_json(),
        "codecs": methods,
        "layers": layers,
        "activations": inputs,
        "attention": _attention(plan),
    }


def _attention(plan: Plan) -> dict[str, Any] | None:
    params = plan.recipe.attention
    if params is None:
        return None
    sites = {name: [site.channels, site.positions] for name, site in plan.attention.items()}
    return {"params": params.to_json(), "sites": sites}


MOST_DB = 200.0  # float32 tells no more; an error of nothing would be infinite, which JSON has not


@dataclass(frozen=True, kw_only=True, slots=True)
class Learnt:
    """What fine-tuning did.

    Attributes:
        before_db, after_db: signal over error of the noise prediction on held-out calls, dB.
        steps: training steps taken.
    """

    before_db: float
    after_db: float
    steps: int


def facts(
    source: Source,
    plan: Plan,
    layers: Sequence[Sequence[LayerResult]],
    learnt: Learnt | None,
) -> dict[str, Any]:
    """Returns the content of `vqdq.json`; without times, so that a resumed run writes the same.

    Args:
        layers: those of the denoiser, then those of each of the plan's other components.
    """
    values = {
        "base_model": source.name,
        **({"base_model_revision": source.revision} if source.revision else {}),
        "component": plan.component.name,
        "recipe": plan.recipe.name,
        "recipe_digest": plan.recipe.digest,
        "weight_bytes": plan.predicted_bytes,
        "reference_bytes": plan.reference_bytes,
        "bits_per_weight": plan.bits_per_weight,
        "finetune": None if learnt is None else asdict(learnt),
        "layers": _rows(layers[0]),
    }
    if plan.others:
        values["other_components"] = {
            other.component.name: {
                "weight_bytes": other.predicted_bytes,
                "reference_bytes": other.reference_bytes,
                "bits_per_weight": other.bits_per_weight,
                "layers": _rows(rows),
            }
            for other, rows in zip(plan.others, layers[1:], strict=True)
        }
    return values


def _rows(layers: Sequence[LayerResult]) -> list[dict[str, Any]]:
    return [{k: v for k, v in asdict(layer).items() if k != "seconds"} for layer in layers]


def dump(values: Mapping[str, Any]) -> str:
    """Returns JSON for a file that people read."""
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_sums(folder: Path) -> None:
    """Writes `SHA256SUMS` over every file below `folder`."""
    lines = [f"{sha256(folder / name)}  {name}\n" for name in _files(folder)]
    write_text(folder / SUMS, "".join(lines))


def require_numbers(tensor: torch.Tensor, name: str) -> None:
    """Raises `UserError` for a tensor with NaN or infinite values."""
    if not tensor.is_floating_point() or not tensor.numel():
        return
    ends = torch.stack(torch.aminmax(tensor))  # one pass, nothing allocated; NaN shows in both
    if not bool(torch.isfinite(ends).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise UserError(
            f"{bad} of {tensor.numel()} values are NaN or infinite.",
            where=name,
            remedy="The checkpoint is damaged or diverged: use another one.",
        )


def half(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """Returns a kept tensor in 16 bits.

    Raises:
        UserError: NaN or infinite values, or values beyond the range of float16.
    """
    if not tensor.is_floating_point():
        return tensor
    require_numbers(tensor, name)
    rounded = tensor.half()
    if not bool(torch.isfinite(rounded).all()):
        raise UserError(
            f"values up to {float(tensor.abs().max()):.3g} do not fit in float16 (65504).",
            where=name,
            remedy="This model cannot be stored in 16 bits.",
        )
    return rounded


def load_quantized(folder: str | Path) -> DiffusionPipeline:
    """Returns the pipeline of a compressed folder.

    Raises:
        UserError: the folder is no compressed model or cannot be opened.
    """
    source = locate(folder)
    packed_config(source)
    return load(folder)


def verify(folder: str | Path, *, report: Report = silent) -> Verification:
    """Returns what is wrong with a compressed folder: checksums, header against plan, values.

    Every packed weight of every component is decoded once. Faults of the content are listed, not
    raised.

    Raises:
        UserError: the folder is no compressed model at all.
    """
    source = locate(folder)
    config = packed_config(source)
    problems: list[str] = []
    names = _check_sums(source.folder, problems, report)
    checked = 0
    try:
        checked += _verify_part(source.weights(), config, problems, report)
        for part, own in packed_parts(source).items():
            found: list[str] = []
            checked += _verify_part(parts(source)[part].weights(), own, found, report)
            problems += [f"{part}, {problem}" for problem in found]
    except UserError as error:
        problems.append(str(error))
    return Verification(folder=source.folder, files=names, layers=checked, problems=tuple(problems))


def _verify_part(
    files: Sequence[WeightFile], config: VqdqConfig, problems: list[str], report: Report
) -> int:
    """Adds what is wrong with the weights of one component; returns how many layers decode."""
    checked = 0
    expected, stored = config.expected(), config.stored()
    weights = {key: file for file in files for key in file.tensors}
    problems += _compare({key: file.tensors[key] for key, file in weights.items()}, stored)
    for done, (name, ghost) in enumerate(expected.items()):
        report(Event(stage="decode", done=done, total=len(expected), message=name))
        if any(f"{name}.{key}" not in weights for key in ghost.tensors):
            continue
        problems += _decoded(weights, name, ghost)
        checked += 1
    for key, file in weights.items():
        if key not in stored and not bool(torch.isfinite(file.read(key)).all()):
            problems.append(f"{key}: NaN or infinite values.")
    report(Event(stage="decode", done=len(expected), total=len(expected)))
    return checked


def packed_parts(source: Source) -> dict[str, VqdqConfig]:
    """Returns what `config.json` says about each packed component beside the denoiser, by name."""
    found: dict[str, VqdqConfig] = {}
    for name, part in parts(source).items():
        values = part.config.get("quantization_config")
        if isinstance(values, dict) and values.get("quant_method") == Method.VQDQ.value:
            found[name] = VqdqConfig.read(cast(dict[str, Any], values))
    return found


def packed_config(source: Source) -> VqdqConfig:
    """Returns what `config.json` says about the packed denoiser of a compressed folder.

    Raises:
        UserError: the folder is not compressed by this program.
    """
    values = source.config.get("quantization_config")
    if not isinstance(values, dict) or values.get("quant_method") != Method.VQDQ.value:
        raise UserError(
            f"the {source.denoiser} is not compressed by vqdq.",
            where=str(source.folder),
            remedy="Name a folder that `vqdq compress` wrote.",
        )
    return VqdqConfig.read(values)


def _check_sums(folder: Path, problems: list[str], report: Report) -> int:
    path = folder / SUMS
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        problems.append(f"{path}: there are no checksums.")
        return 0
    wanted = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for done, (name, digest) in enumerate(wanted.items()):
        report(Event(stage="checksums", done=done, total=len(wanted), message=name))
        file = folder / name
        if not file.is_file():
            problems.append(f"{name}: is missing.")
        elif sha256(file) != digest:
            problems.append(f"{name}: differs from its checksum.")
    extra = [name for name in _files(folder) if name not in wanted]
    problems += [f"{name}: has no checksum." for name in extra]
    return len(wanted)


def _compare(weights: Mapping[str, TensorSpec], expected: Mapping[str, TensorSpec]) -> list[str]:
    problems: list[str] = []
    for key, spec in expected.items():
        found = weights.get(key)
        place, _, name = key.rpartition(".")
        if found is None:
            problems.append(f"{place}: {name} is missing.")
        elif found != replace(spec, name=key):
            problems.append(f"{place}: {name} has another dtype or shape than planned.")
    return problems


def _decoded(weights: Mapping[str, WeightFile], name: str, ghost: Packed) -> list[str]:
    tensors = {key: weights[f"{name}.{key}"].read(f"{name}.{key}") for key in ghost.tensors}
    packed = Packed(codec=ghost.codec, params=ghost.params, shape=ghost.shape, tensors=tensors)
    if packed.storage.tensors != ghost.storage.tensors:
        return []  # already listed by `_compare`
    finite = bool(torch.isfinite(packed.decode()).all())
    return [] if finite else [f"{name}: decodes to NaN or infinite values."]


def _files(folder: Path) -> list[str]:
    """Returns every file below `folder` except the checksums and hidden files, sorted."""
    found = (item.relative_to(folder) for item in folder.rglob("*") if item.is_file())
    return sorted(
        str(name) for name in found if str(name) != SUMS and not name.parts[0].startswith(".")
    )
