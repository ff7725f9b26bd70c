"""Checkpoints in pieces: whole files, no larger than asked, bit for bit, and named when lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from vqdq.demo import pieces
from vqdq.errors import UserError


@pytest.fixture(name="tensors")
def some_tensors(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    monkeypatch.setattr(pieces, "MOST_BYTES", 20_000)
    monkeypatch.setattr(pieces, "_HEADER_BYTES", 2_000)
    generator = torch.Generator().manual_seed(0)
    large = torch.randn(100, 150, generator=generator)  # four pieces by itself
    image = torch.randn(8, 3, 5, 5, generator=generator)
    return {
        "small": torch.arange(7),
        "large": large,
        "turned": image.contiguous(memory_format=torch.channels_last),
        "half": large[:3].bfloat16(),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "empty": torch.empty(0, 4),
    }


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def test_every_piece_is_a_whole_file_of_bounded_size(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    pieces.save(tmp_path, tensors, {"steps": 3.0, "seconds": 0.1})
    found = files(tmp_path)
    assert len(found) == 4
    for path in found:
        assert path.stat().st_size <= 20_000
        with safe_open(path, framework="pt") as file:
            assert file.keys()
    read = pieces.load(tmp_path)
    assert read is not None
    assert read[1] == pieces.facts(tmp_path) == {"steps": 3.0, "seconds": 0.1}
    assert read[0].keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[0][name].dtype == tensor.dtype
        assert torch.equal(read[0][name], tensor)
    assert pieces.load(tmp_path / "nowhere") is None
    assert pieces.facts(tmp_path / "nowhere") == {}


def test_the_new_checkpoint_takes_the_place_of_the_old_one_by_one_rename(
    tmp_path: Path, tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces.save(tmp_path, tensors, {"steps": 1.0})
    first = files(tmp_path)

    def fails(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(pieces.durable, "write_text", fails)
        with pytest.raises(OSError, match="no space"):
            pieces.save(tmp_path, {"small": torch.zeros(2)}, {"steps": 2.0})
    assert pieces.facts(tmp_path) == {"steps": 1.0}
    assert pieces.load(tmp_path) is not None
    pieces.save(tmp_path, {"small": torch.ones(2)}, {"steps": 3.0})
    assert pieces.facts(tmp_path) == {"steps": 3.0}
    assert not set(first) & set(files(tmp_path))


def test_a_piece_that_is_lost_or_damaged_is_named(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    pieces.save(tmp_path, tensors, {})
    path = files(tmp_path)[1]
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="is damaged") as caught:
        pieces.load(tmp_path)
    assert caught.value.where == str(path)
    path.unlink()
    with pytest.raises(UserError, match="is missing"):
        pieces.load(tmp_path)
