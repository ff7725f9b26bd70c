"""What a pipeline takes of a card, and what would fit: the processor stands for the card."""

from __future__ import annotations

import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import vqdq
from tests.layers.streams import WrittenDown
from tests.models import tiny
from vqdq.errors import UserError
from vqdq.jobs import faults, generate
from vqdq.jobs.requests import GenerateRequest
from vqdq.jobs.warm import WarmPipelines
from vqdq.layers import card_memory, residency
from vqdq.layers.card_memory import CardState
from vqdq.layers.prefetch import Prefetch
from vqdq.layers.residency import ModeSetting
from vqdq.models import modes, room
from vqdq.models.compressor import compress_folder, plan
from vqdq.models.footprint import config_of, decoding_bytes, drawing_bytes
from vqdq.models.modes import mode_estimates
from vqdq.recipe import Plan, Recipe

RECIPE = Recipe.from_json({"name": "r", "rules": [{"pattern": "*", "method": "int8"}]})
STREAMING = ModeSetting(mode="streaming")
OFFLOADED = ModeSetting(mode="streaming", offload=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("room")
    tiny.folder(place / "tiny")
    compress_folder(place / "tiny", RECIPE, place / "small")
    return place


@pytest.fixture(scope="module")
def ready(folder: Path) -> Plan:
    return plan(folder / "tiny", RECIPE)


def estimate(ready: Plan, setting: ModeSetting, dtype: torch.dtype = torch.float32) -> Any:
    found = mode_estimates(
        ready, dtype=dtype, device="cuda", cache_bytes=setting.cache_bytes, offload=setting.offload
    )
    return next(each for each in found if each.mode == setting.mode)


def others(pipe: Any, dtype: torch.dtype | None = None) -> int:
    tensors = [tensor for part in (pipe.vae, pipe.text_encoder) for tensor in part.parameters()]
    buffers = sum(tensor.nbytes for tensor in pipe.text_encoder.buffers())  # whole numbers
    return buffers + sum(tensor.numel() * (dtype or tensor.dtype).itemsize for tensor in tensors)


def test_offloaded_it_draws_the_same_and_takes_what_was_planned(
    folder: Path, ready: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe: Any = vqdq.load(folder / "small", mode="streaming", offload=True)
    plain = tiny.draw(pipe)
    assert residency.source_of(pipe.unet).peak == 0  # on the processor nothing is streamed
    streams = WrittenDown()
    monkeypatch.setattr(residency, "Prefetch", partial(Prefetch, lambda _: streams))
    budget = mode_estimates(ready, dtype=torch.float32)[2].cache_bytes
    for setting in (OFFLOADED, ModeSetting(mode="hybrid", cache_bytes=budget, offload=True)):
        pipe = vqdq.load(folder / "small")
        modes.set_mode_(pipe, setting.mode, setting.cache_bytes, offload=True)
        assert torch.equal(tiny.draw(pipe), plain)
        source, planned = residency.source_of(pipe.unet), estimate(ready, setting)
        assert source is not None
        streamed = [each for each in residency.packed_layers(pipe.unet).values() if each.streams]
        largest = max(each.packed.shape.count for each in streamed)
        assert streams.buffers[-2:] == [4 * largest] * 2
        assert planned.buffer_bytes == 8 * largest
        assert modes.held_bytes(pipe) == planned.held_bytes
        whole = sum(tensor.nbytes for tensor in pipe.unet.state_dict().values())
        assert whole == planned.stored_bytes + planned.waiting_bytes
        if setting is OFFLOADED:
            assert source.peak == planned.transient_bytes  # int8 decodes to float32 at once
        else:
            assert source.peak <= planned.transient_bytes
    packed = {item.layer.name: item.storage.total_bytes for item in ready.quantized}
    once = [size for name, size in packed.items() if ".attn2.to_k" in name or ".attn2.to_v" in name]
    away = estimate(ready, OFFLOADED)
    assert away.waiting_bytes == sum(packed.values())
    assert away.brought_bytes == away.waiting_bytes - sum(once) < away.waiting_bytes
    assert away.decode_seconds == estimate(ready, STREAMING).decode_seconds
    # with the packed tensors on the card: more at rest, no buffers
    assert estimate(ready, STREAMING).waiting_bytes == 0
    assert mode_estimates(ready, offload=True)[1].waiting_bytes == 0  # nothing waits on a processor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_use_of_a_card_is_the_plan_of_the_mode_and_what_stands_beside_it(
    folder: Path, ready: Plan, dtype: torch.dtype
) -> None:
    pipe: Any = vqdq.load(folder / "small").to(dtype)
    now = room.way_of(pipe)
    assert (now.setting.mode, now.resolution, now.alone, now.dtype) == (
        "resident",
        16,
        False,
        dtype,
    )
    wide = dtype.itemsize // 2
    working = wide * drawing_bytes(config_of(pipe.unet), 8, 16)
    decoding = wide * decoding_bytes(config_of(pipe.vae), 16)
    for setting in (now.setting, STREAMING, OFFLOADED):
        planned = estimate(ready, setting, dtype)
        use = room.card_use(pipe, replace(now, setting=setting))
        resting = planned.stored_bytes + planned.held_bytes + planned.buffer_bytes
        drawing = planned.weight_bytes + others(pipe) + working
        assert use.total_bytes == max(drawing, resting + others(pipe) + decoding)
    halves = room.card_use(pipe, replace(now, setting=STREAMING, dtype=torch.bfloat16))
    asked = estimate(ready, STREAMING, torch.bfloat16)
    assert halves.weight_bytes in (
        asked.weight_bytes + others(pipe, torch.bfloat16),
        asked.stored_bytes + others(pipe, torch.bfloat16),
    )
    alone = room.card_use(pipe, replace(now, alone=True))
    assert alone.total_bytes < room.card_use(pipe, now).total_bytes


def full_at(needed: int, available: int) -> tuple[CardState, int]:
    return CardState(allocated_bytes=needed - 1000, available_bytes=available), 1000


def test_the_smallest_change_is_the_first_that_fits(folder: Path) -> None:
    pipe: Any = vqdq.load(folder / "small")
    now = room.way_of(pipe)
    use = {
        name: room.card_use(pipe, replace(now, **change)).total_bytes
        for name, change in {
            "resident": {},
            "streaming": {"setting": STREAMING},
            "offload": {"setting": OFFLOADED},
            "alone": {"setting": OFFLOADED, "alone": True},
            "halves": {"setting": OFFLOADED, "alone": True, "dtype": torch.bfloat16},
        }.items()
    }
    sizes = list(use.values())
    assert sizes == sorted(sizes, reverse=True)
    whole = modes.kept_bytes(pipe)
    for available, words in (
        (use["resident"] - 1, "Use the mode hybrid with a cache of "),
        (use["streaming"] + whole // 2, "Use the mode hybrid with a cache of "),
        (use["streaming"], "Use the mode streaming, which"),
        (use["offload"], "Use the mode streaming with offload"),
        (use["alone"], "pipeline: that is planned"),
        (use["halves"], "compute in 16 bits"),
    ):
        said = room.smallest_change(pipe, *full_at(use["resident"], available))
        assert words in said
    said = room.smallest_change(pipe, *full_at(use["resident"], 1000))
    assert said.startswith("Nothing smaller fits: choose a recipe with fewer bits, or a card with")
    # what goes beyond the plan is expected of every change
    beyond = room.smallest_change(pipe, *full_at(use["resident"] + 5000, use["streaming"] + 4999))
    assert "with offload" in beyond
    assert "streaming, which" in room.smallest_change(
        pipe, *full_at(use["resident"] + 5000, use["streaming"] + 5000)
    )


def test_fewer_pixels_are_named_where_nothing_else_is_left(tmp_path: Path) -> None:
    pipe: Any = tiny.pipeline(tmp_path).to(torch.bfloat16)
    pipe.unet.register_to_config(sample_size=64)
    pipe._all_hooks = [object()]  # one component at a time
    now = room.way_of(pipe)
    assert now.alone
    assert now.resolution == 128
    some = room.card_use(pipe, replace(now, resolution=80)).total_bytes
    needed = room.card_use(pipe, now).total_bytes
    assert needed > some
    assert "Draw 80 x 80 pixels: " in room.smallest_change(pipe, *full_at(needed, some))
    assert "Compress the model" in room.smallest_change(pipe, *full_at(needed, 1000))


def test_the_record_says_what_waited(
    folder: Path, ready: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = WarmPipelines()
    asked = GenerateRequest(model=str(folder / "small"), prompt="a red circle", steps=1)
    away = replace(asked, mode="streaming", offload=True)
    plain = generate.execute(asked, tmp_path, cache=cache)
    assert not {"offload", "waiting_bytes"} & plain.keys()
    here = generate.execute(away, tmp_path, cache=cache)
    assert (here["mode"], here["offload"], here["waiting_bytes"]) == ("streaming", True, 0)
    monkeypatch.setattr(residency, "Prefetch", partial(Prefetch, lambda _: WrittenDown()))
    cache.drop()
    there = generate.execute(away, tmp_path, cache=cache)
    assert there["waiting_bytes"] == sum(item.storage.total_bytes for item in ready.quantized)


class Watched(torch.Tensor):
    """A tensor that can be held weakly."""


def test_a_full_card_is_caught_once_told_and_left_usable(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer asks for more than there is while others hold their outputs."""
    cache = WarmPipelines()
    asked = GenerateRequest(model=str(folder / "small"), prompt="a red circle", steps=1)
    pipe: Any = cache.get(asked.model).pipeline
    needed = room.card_use(pipe, room.way_of(pipe)).total_bytes
    emptied: list[int] = []
    alive: list[Any] = []

    def breaks(_module: object, _inputs: object) -> None:
        held = torch.zeros(1000).as_subclass(Watched)  # of a frame that the error passes
        alive.append(weakref.ref(held))
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 KiB. GPU 0 has a total capacity of 7.79 "
            "GiB of which 12.50 MiB is free."
        )

    # The card holds another model, too: 5 MB that are no matter of this one.
    own = others(pipe) + sum(tensor.nbytes for tensor in pipe.unet.state_dict().values())
    states = [
        CardState(allocated_bytes=5_000_000 + taken, available_bytes=5_000_000 + needed - 1)
        for taken in (own, needed - 20 * 1024, own)
    ]
    monkeypatch.setattr(card_memory, "card_of", lambda _: torch.device("cpu"))
    monkeypatch.setattr(card_memory, "card_state", lambda _: states.pop(0))
    monkeypatch.setattr(card_memory, "reset_card_peak", lambda _: None)
    monkeypatch.setattr(card_memory, "card_peak", lambda _: 5_012_345)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(alive[0]() is None))
    handle = pipe.unet.mid_block.register_forward_pre_hook(breaks)
    with pytest.raises(UserError) as caught:
        generate.execute(asked, tmp_path, cache=cache)
    handle.remove()
    assert "20.00 KiB more were needed, 12.50 MiB were free" in caught.value.what
    assert "Use the mode hybrid with a cache of" in caught.value.remedy
    assert emptied == [True]  # what the frames held is gone before the cache is emptied
    assert faults.as_user_error(caught.value, "generate") is caught.value
    drawn = generate.execute(replace(asked, mode="streaming"), tmp_path, cache=cache)
    way = replace(room.way_of(pipe), resolution=16)
    assert way.setting == STREAMING
    planned = room.card_use(pipe, way).total_bytes
    assert drawn["card"] == {"planned_bytes": planned, "measured_bytes": 12345}


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="shapes"), faults.card_faults("unet", lambda _: ""):
        raise RuntimeError("shapes do not match")
    with pytest.raises(UserError, match="full"), faults.card_faults("unet", lambda _: "Less."):
        raise RuntimeError("CUDA error: out of memory")
