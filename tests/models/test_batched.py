"""Equal layers that are encoded together: the same bytes as one by one, and no more memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models import tiny
from vqdq import codecs, kernels
from vqdq.codecs.base import InputStats, WeightShape
from vqdq.errors import UserError
from vqdq.kernels import backend
from vqdq.models import layerwise
from vqdq.models.compressor import compress_folder
from vqdq.models.encoding import EncodedLayer, LayerJob, encode_layer, encode_layers
from vqdq.progress import Event, silent
from vqdq.recipe import Layer, PlannedLayer, Recipe

SETTINGS: dict[str, Any] = {"bits": 3, "state_bits": 8, "rotation": 64, "output_rotation": 64}


def planned(name: str, rows: int = 64, columns: int = 128, method: str = "trellis") -> PlannedLayer:
    params = codecs.get(method).settings.from_json(
        SETTINGS if method == "trellis" else {}, where=name
    )
    shape = WeightShape(out_features=rows, in_features=columns)
    storage = codecs.create(method, params).storage(shape)
    layer = Layer(name=name, kind="linear", shape=shape)
    return PlannedLayer(layer=layer, rule=0, method=method, params=params, storage=storage)


def jobs(generator: torch.Generator, *, known: bool) -> list[LayerJob]:
    """Three layers; of inputs whose power and mean differ from layer to layer."""
    found: list[LayerJob] = []
    for name in ("a", "b", "c"):
        matrix = torch.randn(64, 128, generator=generator)
        stats = bias = smoothing = None
        if known:
            mixed = torch.randn(128, 128, generator=generator)
            inputs = torch.randn(300, 128, generator=generator) @ mixed + 1
            hessian = inputs.T @ inputs / 300
            stats = InputStats(hessian=hessian, mean=inputs.mean(0), num_samples=300)
            bias = torch.randn(64, generator=generator)
            smoothing = torch.rand(128, generator=generator) + 0.5 if name == "b" else None
        found.append(
            LayerJob(
                planned=planned(name), matrix=matrix, stats=stats, bias=bias, smoothing=smoothing
            )
        )
    return found


def same(one: EncodedLayer, other: EncodedLayer) -> bool:
    mine, theirs = one.packed.tensors, other.packed.tensors
    assert list(mine) == list(theirs)
    equal = all(torch.equal(mine[key], theirs[key]) for key in theirs)
    if one.bias is not None and other.bias is not None:
        equal = equal and torch.equal(one.bias, other.bias)
    return equal and (one.error_db, one.output_error_db) == (other.error_db, other.output_error_db)


@pytest.mark.parametrize("known", [False, True])
def test_together_they_are_the_same_bytes(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    given = jobs(torch.Generator().manual_seed(0), known=known)
    alone = [
        encode_layer(
            job.matrix, job.planned, 5, silent,
            stats=job.stats, bias=job.bias, smoothing=job.smoothing,
        )
        for job in given
    ]  # fmt: skip
    searched: list[tuple[int, ...]] = []
    for op in ("trellis_encode", "trellis_feedback"):

        def counts(first: torch.Tensor, *rest: Any, op: str = op) -> torch.Tensor:
            searched.append(tuple(first.shape))
            return getattr(backend.chosen("vqdq.kernels.cpu", "")[0], op)(first, *rest)

        monkeypatch.setattr(kernels, op, counts)
    together = encode_layers(given, 5, silent)
    assert searched == [(3, 64, 128) if known else (64, 3 * 128)]  # one search for all
    assert all(map(same, together, alone))
    assert not same(together[0], together[1])


def test_the_interpreted_card_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search alone: everything else is the processor's."""
    generator = torch.Generator().manual_seed(1)
    given = [
        LayerJob(planned=planned(name, 32, 2), matrix=torch.randn(32, 2, generator=generator))
        for name in ("a", "b")
    ]
    alone = [encode_layers([job], 5, silent)[0] for job in given]
    plain = kernels.trellis_encode

    def on_card(*args: Any) -> torch.Tensor:
        with backend.interpreted():
            return plain(*args)

    monkeypatch.setattr(kernels, "trellis_encode", on_card)
    assert all(map(same, encode_layers(given, 5, silent), alone))


def test_one_bad_layer_is_named() -> None:
    given = jobs(torch.Generator().manual_seed(2), known=False)
    given[1].matrix[3, 4] = torch.nan
    with pytest.raises(UserError, match="NaN") as caught:
        encode_layers(given, 5, silent)
    assert caught.value.where == "b"


def names(found: Sequence[Sequence[PlannedLayer]]) -> list[list[str]]:
    return [[each.layer.name for each in batch] for batch in found]


def test_a_batch_is_never_larger_than_the_largest_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [
        planned("small 1"), planned("large", 192, 128), planned("small 2"),
        planned("other", method="int8"), planned("small 3"), planned("small 4"),
    ]  # fmt: skip
    most = 192 * 128
    alone = [[each.layer.name] for each in layers]
    if not torch.cuda.is_available():
        assert names([*layerwise.batches(layers, {}, most)]) == alone  # on a processor
    monkeypatch.setattr(layerwise, "searches_on_card", lambda _: True)
    assert names([*layerwise.batches(layers, {}, most)]) == [
        ["large"], ["other"], ["small 1", "small 2", "small 3"], ["small 4"],
    ]  # fmt: skip
    known = {"small 2": InputStats(hessian=torch.eye(128))}
    found = names([*layerwise.batches(layers, known, most)])
    assert ["small 1", "small 3", "small 4"] in found
    assert ["small 2"] in found
    with backend.interpreted():
        assert backend.searches_on_card("trellis_encode")


def test_a_folder_compressed_in_batches_is_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.folder(tmp_path / "tiny")
    small = {"bits": 3, "state_bits": 8}
    recipe = Recipe.from_json(
        {"name": "r", "rules": [{"pattern": "*to_*", "method": "trellis", "params": small}]}
    )
    compress_folder(tmp_path / "tiny", recipe, tmp_path / "alone")
    monkeypatch.setattr(layerwise, "searches_on_card", lambda _: True)
    seen: list[str] = []

    def report(event: Event, /) -> None:
        if event.stage == "encode":
            seen.append(f"{event.done} of {event.total}: {event.message}")

    compress_folder(tmp_path / "tiny", recipe, tmp_path / "batched", report=report)
    file = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "alone" / file).read_bytes() == (tmp_path / "batched" / file).read_bytes()
    assert any("like it" in line for line in seen)
