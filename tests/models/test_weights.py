"""Our safetensors files are those of the library, byte for byte; damaged ones are named."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vqdq.durable import atomic
from vqdq.errors import UserError
from vqdq.models.weights import open_weights, unreadable, write_weights
from vqdq.tensors import TensorSpec, safetensors_bytes

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.uint8, torch.int64, torch.bool]
METADATA = {"format": "pt"}
shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
tensors = st.dictionaries(
    st.text("abc.é_0", min_size=1, max_size=12),
    st.builds(lambda s, d: torch.ones(s).to(d), shapes, st.sampled_from(DTYPES)),
    min_size=1,
    max_size=8,
)


def write(path: Path, content: dict[str, torch.Tensor]) -> int:
    specs = [TensorSpec.of(name, tensor) for name, tensor in content.items()]
    return write_weights(path, specs, METADATA, lambda spec: content[spec.name])


@settings(max_examples=40)
@given(tensors)
def test_bytes_are_those_of_the_library(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, torch.Tensor]
) -> None:
    folder = tmp_path_factory.mktemp("weights")
    size = write(folder / "ours", content)
    save_file(content, folder / "theirs", metadata=METADATA)
    assert (folder / "ours").read_bytes() == (folder / "theirs").read_bytes()
    specs = [TensorSpec.of(name, tensor) for name, tensor in content.items()]
    assert size == safetensors_bytes(specs, METADATA)
    file = open_weights(folder / "ours")
    assert file.tensors == {spec.name: spec for spec in specs}
    assert file.metadata == METADATA
    assert all(torch.equal(file.read(name), tensor) for name, tensor in content.items())


def damaged(path: Path, kind: str) -> None:
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    if kind == "empty":
        data = b""
    elif kind == "cut in the header":
        data = data[:20]
    elif kind == "cut in the data":
        data = data[:-3]
    elif kind == "longer":
        data += b"\0"
    elif kind == "text":
        data = b"version https://git-lfs.github.com/spec/v1\n"
    elif kind == "scrambled":
        data = data[:9] + bytes(64) + data[73:]
    elif kind == "wrong size":
        header["a"]["shape"] = [7, 7]
        text = json.dumps(header).encode()
        data = len(text).to_bytes(8, "little") + text + bytes(24)
    path.write_bytes(data)


@pytest.mark.parametrize(
    "kind",
    ["empty", "cut in the header", "cut in the data", "longer", "text", "scrambled", "wrong size"],
)
def test_damage_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    write(path, {"a": torch.ones(2, 3)})
    damaged(path, kind)
    with pytest.raises(UserError) as caught:
        open_weights(path)
    assert caught.value.where == str(path)
    assert "again" in caught.value.remedy


def test_missing_and_forbidden_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_weights(tmp_path / "nothing.safetensors")
    assert "may not be read" in str(unreadable(tmp_path, PermissionError(errno.EACCES, "denied")))
    assert "Input/output" in str(unreadable(tmp_path, OSError(errno.EIO, "Input/output error")))


def full_disk(path: Path) -> None:
    with atomic(path) as file:
        file.write(b"new")
        raise OSError(errno.ENOSPC, "disk full")


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    content = {"a": torch.ones(2), "b": torch.ones(3)}
    specs = [TensorSpec.of(name, tensor) for name, tensor in content.items()]
    specs.append(TensorSpec(name="c", dtype=torch.float32, shape=(4,)))
    with pytest.raises(KeyError):
        write_weights(path, specs, METADATA, lambda spec: content[spec.name])
    with pytest.raises(UserError, match="planned was"):
        write_weights(path, specs, METADATA, lambda _: torch.ones(2))
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="full"):
        full_disk(path)
    assert path.read_bytes() == b"old"
    write(path, content)
    assert torch.equal(load_file(path)["b"], torch.ones(3))
