"""More than a thousand mutated files: each is opened or refused as `UserError`; nothing runs."""

from __future__ import annotations

import copy
import json
import random
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from safetensors.torch import save_file

from tests.chaos import mutants
from tests.models import families
from vqdq.errors import UserError
from vqdq.models.packed_config import VqdqConfig
from vqdq.models.pipelines import describe, source_component
from vqdq.models.sources import locate
from vqdq.models.weight_sets import open_component
from vqdq.models.weights import open_weights
from vqdq.recipe import Recipe

RUNS = ("pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "socket.connect")
NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 1, 7, 2**31, 2**63, 10**30, -(10**18), 0.5, 1e308, float("nan"),
    float("inf"), "", "x", "../../../etc/passwd", "/dev/zero", "a" * 5000, "\0", "é\ud800",
    "__class__", [], {}, [[]], [0], [-1, 2**62], [2**40] * 3, [10**9] * 12, {"a": {}}, "F8_E4M3",
    "BF16", [None], "torch.load", "trust_remote_code",
)  # fmt: skip
_watching = False
_ran: list[str] = []


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _watching and event in RUNS:
        _ran.append(f"{event} {args!r:.200}")


sys.addaudithook(_audit)


@contextmanager
def nothing_runs() -> Iterator[None]:
    global _watching
    _watching = True
    try:
        yield
    finally:
        _watching = False
    assert _ran == []


def places(values: Any) -> list[tuple[Any, Any]]:
    """Every place in nested JSON: its container and its key or number."""
    keys = values.keys() if isinstance(values, dict) else range(len(values))
    found = [(values, key) for key in keys]
    for key in keys:
        if isinstance(values[key], dict | list) and values[key]:
            found += places(values[key])
    return found


def mutated_json(values: Any, rng: random.Random) -> Any:
    made = copy.deepcopy(values)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        if not (known := places(made)):
            break
        container, key = rng.choice(known)
        action = rng.randrange(5)
        if action == 0:
            del container[key]
        elif action == 1 and isinstance(container, dict):
            container[rng.choice(("", "x", "../x", str(key) + "x", "a" * 999))] = container.pop(key)
        elif action == 2 and isinstance(container[key], int | float):
            container[key] = container[key] * rng.choice((-1, 2, 3, 10)) + rng.choice((0, 1))
        else:
            container[key] = copy.deepcopy(rng.choice(NASTY))
    return made


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(len(made) + 1) if made else 0
        action = rng.randrange(5)
        if action == 0 and place < len(made):
            made[place] ^= 1 << rng.randrange(8)
        elif action == 1:
            del made[place:]
        elif action == 2:
            made[place:place] = rng.randbytes(rng.randrange(1, 20))
        elif action == 3:
            del made[place : place + rng.randrange(1, 20)]
        else:
            made[:8] = struct.pack("<Q", rng.choice((0, 1, 8, 10**12, 2**63, len(made))))
    return bytes(made)


def refused_or_opened(opened: Callable[[], object], mutation: object) -> bool:
    """True when it was refused; any other exception fails, and shows what caused it."""
    try:
        opened()
    except UserError:
        return True
    except Exception as error:
        pytest.fail(f"{type(error).__name__}: {error}\nby {mutation!r:.1500}")
    return False


def test_weight_files(tmp_path: Path) -> None:
    ((_, rng),) = mutants.chances("weights", 1)
    path = tmp_path / "model.safetensors"
    save_file({"a.weight": torch.ones(4, 3).half(), "b": torch.ones(2)}, path, metadata={"x": "y"})
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]

    def opened() -> None:
        file = open_weights(path)
        size = sum(spec.num_bytes for spec in file.tensors.values())
        assert size <= path.stat().st_size  # what a header promises is there
        for key in file.tensors:
            assert file.read(key).numel() >= 0

    refused = 0
    with nothing_runs():
        for number in range(700):
            if number % 2:
                data = mutated_bytes(whole, rng)
            else:
                text = json.dumps(mutated_json(header, rng)).encode()
                data = struct.pack("<Q", len(text)) + text + body
            path.write_bytes(data)
            refused += refused_or_opened(opened, data)
    assert 400 < refused < 700


def test_indices_of_shards(tmp_path: Path) -> None:
    ((_, rng),) = mutants.chances("indices", 1)
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    for key, name in names.items():
        save_file({key: torch.ones(2)}, tmp_path / name)
    path = tmp_path / "model.safetensors.index.json"
    values = {"metadata": {"total_size": 16}, "weight_map": names}
    refused = 0
    with nothing_runs():
        for number in range(200):
            made = mutated_json(values, rng)
            data = json.dumps(made).encode()
            path.write_bytes(data if number % 2 else mutated_bytes(data, rng))
            refused += refused_or_opened(lambda: open_component(tmp_path, "model"), made)
    assert 100 < refused < 200


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # by what is then refused
def test_configs_of_a_folder(tmp_path: Path) -> None:
    ((_, rng),) = mutants.chances("configs", 1)
    pipe, _ = families.build("pixart_sigma")
    pipe.save_pretrained(tmp_path)
    assert isinstance(pipe.transformer, PixArtTransformer2DModel)
    refused = 0
    for name, count in (("model_index.json", 20), ("transformer/config.json", 30)):
        path = tmp_path / name
        text = path.read_text()
        with nothing_runs():
            for _ in range(count):
                made = mutated_json(json.loads(text), rng)
                path.write_text(json.dumps(made))
                if rng.randrange(3):
                    refused += refused_or_opened(lambda: source_component(locate(tmp_path)), made)
                else:
                    refused += refused_or_opened(lambda: describe(tmp_path), made)
        path.write_text(text)
    assert 10 < refused < 50


def _stored(values: object) -> object:
    return VqdqConfig.read(values).stored()


def test_recipes_and_compressed_configs() -> None:
    ((_, rng),) = mutants.chances("recipes", 1)
    recipe = {
        "version": 1, "name": "r", "title": "t", "seed": 0,
        "rules": [{"pattern": "a*", "method": "trellis", "params": {"bits": 3}},
                  {"pattern": "*", "method": "uniform", "params": {"bits": 4}}],
        "calibration": {"prompts": 4, "steps": 2}, "finetune": {"steps": 10},
        "components": {"text_encoder": {"rules": [{"pattern": "*", "method": "uniform"}]}},
    }  # fmt: skip
    packed = {
        "recipe": recipe, "version": 3, "attention": None,
        "codecs": [{"method": "uniform", "params": {"bits": 4, "group_size": 0}}],
        "activations": [{"method": "dynamic", "params": {"bits": 8}}],
        "layers": {"a": {"codec": 0, "shape": [8, 16], "taps": 1, "activation": 0,
                         "positions": 4},
                   "b": {"codec": 0, "shape": [8, 36], "taps": 9}},
    }  # fmt: skip
    refused = 0
    with nothing_runs():
        for _ in range(200):
            made = mutated_json(recipe, rng)
            refused += refused_or_opened(partial(Recipe.from_json, made), made)
        for _ in range(200):
            made = mutated_json(packed, rng)
            refused += refused_or_opened(partial(_stored, made), made)
    assert 200 < refused < 400
