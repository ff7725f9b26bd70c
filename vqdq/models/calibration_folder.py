"""Calibration on the disk: each group of layers in its own file, made once and used many times.

    calibration.json             the model, the settings, and which layers each file serves
    groups/00000.safetensors     hessian [in, in]; mean, mean_magnitude [in]; low, high [channels]

Unfinished work, the recorded calls too, lies in `<folder>.partial/`; the same call goes on from
there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import safe_open

from vqdq.calibration import CalibrationParams
from vqdq.capture.moments import Moments
from vqdq.codecs.base import InputStats
from vqdq.durable import sync_folder, write_text
from vqdq.errors import UserError
from vqdq.models.checkpoint import dump
from vqdq.models.denoisers import denoiser
from vqdq.models.effects import step_weights
from vqdq.models.gathering import moments_of
from vqdq.models.input_groups import InputGroup, Wave, input_groups, plan_waves, waves_in_words
from vqdq.models.partial import fingerprint, open_partial, refuse_existing, version
from vqdq.models.sources import locate
from vqdq.models.space import full_disk
from vqdq.models.teacher import Teacher
from vqdq.models.trajectory import Trajectories
from vqdq.models.weights import open_weights, unreadable, write_weights
from vqdq.places import expanded, inside
from vqdq.progress import Event, Report, silent
from vqdq.recipe import Component
from vqdq.tensors import TensorSpec

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

INDEX = "calibration.json"
_GROUPS = "groups"
_FORMAT_VERSION = 1
_DAMAGE = (
    ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError,
)  # fmt: skip
_SMALL = ("mean", "mean_magnitude", "low", "high")
_REMEDY = "Calibrate the model again, into another folder."


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationResult:
    """What a calibration made.

    Attributes:
        output: the folder.
        layers, groups: layers with statistics, and different inputs among them.
        passes: over the calls in this run; `plan` says it in words.
        tokens: rows that came in, over all groups.
        seconds: wall time of this run; `bytes`: size of the folder.
    """

    output: Path
    layers: int
    groups: int
    passes: int
    plan: str
    tokens: int
    seconds: float
    bytes: int


def calibrate_folder(
    model: str | Path, params: CalibrationParams, output: str | Path, *, report: Report = silent
) -> CalibrationResult:
    """Collects the statistics of every layer of a model's denoiser into a new folder.

    Recorded calls and finished groups are kept in `<output>.partial/`: the same call after an
    interruption goes on from there, and the folder is the same. It appears by one rename,
    complete, or not at all.

    Args:
        model: "demo", a folder or a hub id; in full precision.
        report: stages "record" (prompts), "weigh" (steps, if the settings ask for it) and
            "calibrate" (calls, over all passes); may raise `Cancelled`.

    Raises:
        UserError: a fault of the model, the settings or the disk, or too little memory allowed.
    """
    started = time.perf_counter()
    target = expanded(output).absolute()
    refuse_existing(target)
    source = locate(model)
    if source.is_quantized:
        raise UserError(
            "is compressed already; its layers no longer see what they saw.",
            where=str(source.folder),
            remedy="Calibrate the model that it was made from.",
        )
    facts = {
        "settings": json.dumps(params.to_json(), sort_keys=True),
        "model": fingerprint(source.weights(), source.config),
        "version": version(),
    }
    with open_partial(target, facts) as partial:
        teacher = Teacher(model)
        pipeline = teacher.pipeline(report)
        kept_calls = partial.folder / "calls"
        trajectories = teacher.calibration_calls(params, report, keep=kept_calls)
        groups = input_groups(denoiser(pipeline)[1], trajectories.calls)
        folder = partial.folder / _GROUPS
        folder.mkdir(exist_ok=True)
        paths = {group: folder / _name(number) for number, group in enumerate(groups)}
        left = [group for group, path in paths.items() if not _finished(path, group)]
        waves = plan_waves(left, int(params.memory_gb * 1e9))
        with full_disk(target, sum(4 * group.in_features**2 for group in groups)):
            _collect(pipeline, trajectories, waves, params, paths, report)
            rows = {
                group: int(open_weights(path).metadata["rows"]) for group, path in paths.items()
            }
            for stray in set(folder.iterdir()) - set(paths.values()):
                stray.unlink()  # half a file of a killed process
            partial.final.mkdir()
            write_text(partial.final / INDEX, dump(_index(source.name, facts, params, rows)))
            folder.rename(partial.final / _GROUPS)
            sync_folder(partial.final)
            partial.publish(target)
    return CalibrationResult(
        output=target,
        layers=sum(len(group.layers) for group in groups),
        groups=len(groups),
        passes=len(waves),
        plan=waves_in_words(waves),
        tokens=sum(rows.values()),
        seconds=time.perf_counter() - started,
        bytes=sum(path.stat().st_size for path in target.rglob("*") if path.is_file()),
    )


def keep_part(
    teacher: Teacher,
    params: CalibrationParams,
    layers: Collection[str],
    folder: Path,
    *,
    calls: Path,
    report: Report = silent,
) -> list[dict[str, Any]]:
    """Returns the index entries of the groups that `layers` lead, after writing their files.

    A group is led by its first layer, so parts of the layers make parts of the groups. Each file is
    the one that `calibrate_folder` writes, whatever else is collected beside it.

    Args:
        folder: takes a file for each group.
        calls: files of recorded calls; what is missing there is drawn.
    """
    pipeline = teacher.pipeline(report)
    trajectories = teacher.calibration_calls(params, report, keep=calls)
    every = input_groups(denoiser(pipeline)[1], trajectories.calls)
    groups = [group for group in every if group.name in layers]
    paths = {group: folder / _name(number) for number, group in enumerate(groups)}
    waves = plan_waves(groups, int(params.memory_gb * 1e9))
    _collect(pipeline, trajectories, waves, params, paths, report)
    rows = {group: int(open_weights(path).metadata["rows"]) for group, path in paths.items()}
    return [_entry(paths[group].name, group, count) for group, count in rows.items()]


def write_parts(
    folder: Path, params: CalibrationParams, entries: Sequence[Mapping[str, Any]]
) -> None:
    """Writes the index of a folder that holds the files of `entries`, for `open_calibration`."""
    values = {"version": _FORMAT_VERSION, "params": params.to_json(), "groups": list(entries)}
    write_text(folder / INDEX, dump(values))


def open_calibration(
    folder: str | Path, component: Component | None = None
) -> Mapping[str, InputStats]:
    """Returns the statistics of each layer in a folder of `calibrate_folder`, read when asked for.

    Hessians are mapped, not loaded: they take memory only while they are used.

    Args:
        component: what the statistics are for; None does not check.

    Raises:
        UserError: no such folder, damaged, or made from another model.
    """
    place = expanded(folder)
    path = place / INDEX
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        if values["version"] != _FORMAT_VERSION:
            raise UserError(
                f"version {values['version']!r} is not supported.",
                where=str(path),
                remedy="Use the program that wrote it, or calibrate again.",
            )
        found = _Folder(place, values)
    except OSError as error:
        raise unreadable(path, error) from error
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise UserError("is not a calibration.", where=str(path), remedy=_REMEDY) from error
    if component is not None:
        _check(found, component, place)
    return found


def input_ranges(folder: str | Path, layer: str) -> dict[str, torch.Tensor]:
    """Returns what a folder knows of a layer's input besides H, float32.

    `mean` and `mean_magnitude` [in] come from the sampled rows; `low` and `high` [channels] are the
    exact extremes over every token of every call that brought a new input.

    Raises:
        UserError: no such folder or layer.
    """
    found = open_calibration(folder)
    if not isinstance(found, _Folder) or layer not in found:
        raise UserError("has no statistics of this layer.", where=f"{folder}: {layer}")
    weights = open_weights(found.entries[layer].path)
    return {name: weights.read(name) for name in _SMALL}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Known:
    path: Path
    in_features: int
    rows: int


class _Folder(Mapping[str, InputStats]):
    """The statistics of a folder by layer."""

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        self._damping = float(values["params"]["damping"])
        self.entries = {
            str(name): _Known(
                path=inside(folder, group["file"]),
                in_features=int(group["in_features"]),
                rows=int(group["rows"]),
            )
            for group in cast(list[dict[str, Any]], values["groups"])
            for name in group["layers"]
        }

    def __getitem__(self, layer: str) -> InputStats:
        entry = self.entries[layer]
        open_weights(entry.path)  # says what is wrong with a damaged file
        with safe_open(entry.path, framework="pt") as file:
            hessian: torch.Tensor = file.get_tensor("hessian")
            mean: torch.Tensor = file.get_tensor("mean")
        return InputStats(
            hessian=hessian, mean=mean.clone(), num_samples=entry.rows, damping=self._damping
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def _check(found: _Folder, component: Component, place: Path) -> None:
    widths = {layer.name: layer.shape.in_features for layer in component.layers}
    for name, entry in found.entries.items():
        if widths.get(name) != entry.in_features:
            raise UserError(
                f"holds the inputs of {name} with {entry.in_features} columns, the model has "
                f"{widths.get(name, 'no such layer')}.",
                where=str(place),
                remedy="Calibrate this model: `vqdq calibrate MODEL --output DIR`.",
            )


def _collect(
    pipeline: DiffusionPipeline,
    trajectories: Trajectories,
    waves: Sequence[Wave],
    params: CalibrationParams,
    paths: Mapping[InputGroup, Path],
    report: Report,
) -> None:
    module, calls = denoiser(pipeline)[1], len(trajectories.calls)
    weights = None
    if waves and params.weighting == "effect":
        weights = step_weights(pipeline, trajectories, report=report)
    for number, wave in enumerate(waves):
        inner = _pass(report, number * calls, len(waves) * calls, f"pass {number + 1}: ")
        found = moments_of(module, trajectories, wave.groups, params, report=inner, weights=weights)
        for group in wave.groups:
            _keep(paths[group], group, found.pop(group.name))


def _pass(report: Report, before: int, total: int, words: str) -> Report:
    """Returns the report of one pass, counted over all of them."""

    def inner(event: Event, /) -> None:
        report(replace(event, done=before + event.done, total=total, message=words + event.message))

    return inner


def _name(number: int) -> str:
    return f"{number:05d}.safetensors"


def _keep(path: Path, group: InputGroup, moments: Moments) -> None:
    tensors = {
        "hessian": moments.hessian(),
        "mean": moments.mean(),
        "mean_magnitude": moments.mean_magnitude(),
        "low": moments.low,
        "high": moments.high,
    }
    specs = [TensorSpec.of(name, tensor) for name, tensor in tensors.items()]
    facts = {"layers": json.dumps(group.layers), "rows": str(moments.rows)}
    write_weights(path, specs, facts, lambda spec: tensors[spec.name])


def _finished(path: Path, group: InputGroup) -> bool:
    """Returns whether an earlier run finished the group; a file that does not fit is removed."""
    if not path.is_file():
        return False
    try:
        file = open_weights(path)
    except UserError:
        path.unlink()
        return False
    if file.metadata.get("layers") == json.dumps(group.layers):
        return True
    path.unlink()
    return False


def _index(
    model: str, facts: Mapping[str, str], params: CalibrationParams, rows: Mapping[InputGroup, int]
) -> dict[str, Any]:
    return {
        "version": _FORMAT_VERSION,
        "model": model,
        "fingerprint": facts["model"],
        "params": params.to_json(),
        "groups": [
            _entry(f"{_GROUPS}/{_name(number)}", group, count)
            for number, (group, count) in enumerate(rows.items())
        ],
    }


def _entry(file: str, group: InputGroup, rows: int) -> dict[str, Any]:
    return {
        "file": file,
        "layers": list(group.layers),
        "kind": group.kind,
        "in_features": group.in_features,
        "taps": group.taps,
        "rows": rows,
    }
