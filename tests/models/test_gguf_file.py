"""A GGUF file is what diffusers' reader opens, and its added error is what a second count says."""

from __future__ import annotations

import builtins
import errno
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, GGUFQuantizationConfig
from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_gguf_tensor

from tests.models import families, tiny
from tests.models.test_single_file import RECIPE, flux
from vqdq.errors import Cancelled, UserError
from vqdq.models.compressor import compress_folder
from vqdq.models.denoisers import denoiser
from vqdq.models.export import export_folder, gguf_file
from vqdq.models.export.original import original
from vqdq.models.sources import locate
from vqdq.progress import Event, silent

pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gguf")
    for family in ("flux_dev", "stable_diffusion_3"):
        pipe, _ = families.build(family)
        pipe.save_pretrained(root / family)
        compress_folder(root / family, RECIPE, root / f"{family}-small")
    return root


def absent(folder: Path) -> dict[str, None]:
    index = DiffusionPipeline.load_config(folder)
    return {key: None for key, value in index.items() if value == [None, None]}


def decoded(folder: Path) -> Any:
    model = denoiser(DiffusionPipeline.from_pretrained(folder, **absent(folder)))[1]
    return model.dequantize()  # type: ignore[operator]


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "f16"])
@pytest.mark.parametrize("family", ["flux_dev", "stable_diffusion_3"])
def test_diffusers_opens_it(
    place: Path, tmp_path: Path, family: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = export_folder(place / f"{family}-small", tmp_path / "x.gguf", format=f"gguf-{name}")
    before = decoded(place / f"{family}-small")
    entry = SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]

    def convert(checkpoint: Any, **_: Any) -> Any:
        return flux(checkpoint, before.config)

    monkeypatch.setitem(entry, "checkpoint_mapping_fn", convert)
    model = type(before).from_single_file(
        str(made.output), config=str(place / family), subfolder="transformer", dtype=torch.float32,
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
    )  # fmt: skip
    error = energy = 0.0
    rounded = 0
    found = dict(model.named_parameters())
    for key, exact in before.named_parameters():
        value = exact.half().float()  # what an export holds
        if not isinstance(found[key], GGUFParameter):
            assert torch.equal(found[key], value), key
            continue
        after = dequantize_gguf_tensor(found[key])
        error += float((after - value).double().square().sum())
        energy += float(value.double().square().sum())
        rounded += 1
    assert dict(made.kinds)["F32"] > 0
    if name == "f16":
        assert made.error_db is None
        assert (rounded, made.left_out) == (0, ())
        return
    assert rounded > 10
    # Their decoder multiplies in float16: measured, up to 0.01 dB apart.
    assert made.error_db == pytest.approx(10 * math.log10(error / energy), abs=0.02)
    assert f"an error of {made.error_db:.1f} dB is added" in made.left_out[0]
    _, call = families.build(family)
    pipe = DiffusionPipeline.from_pretrained(
        place / family, transformer=model, **absent(place / family)
    )
    pipe.set_progress_bar_config(disable=True)
    assert torch.isfinite(families.draw(pipe, call)).all()


def test_fewer_bits_lose_more(place: Path, tmp_path: Path) -> None:
    small, lost = place / "flux_dev-small", dict[str, Any]()
    for name in gguf_file.TYPES[1:]:
        lost[name] = export_folder(small, tmp_path / f"{name}.gguf", format=f"gguf-{name}")
    errors = {name: made.error_db for name, made in lost.items()}
    assert errors["q8_0"] < -40  # beside 4-bit weights, one part in ten thousand
    assert errors["q8_0"] < errors["q5_0"] < errors["q4_0"]
    sizes = [made.bytes for made in lost.values()]
    assert sizes == sorted(sizes, reverse=True)


def test_a_unet_keeps_its_convolutions_in_16_bits(tmp_path: Path) -> None:
    import gguf

    source = locate(tiny.folder(tmp_path / "tiny"))
    layout = original(source)
    assert layout is not None
    made = gguf_file.write(source, layout, tmp_path / "x.gguf", "q4_0", silent)
    read = gguf.GGUFReader(tmp_path / "x.gguf")
    kinds = {tensor.name: (tensor.tensor_type.name, len(tensor.shape)) for tensor in read.tensors}
    assert {kind for kind, dims in kinds.values() if dims == 4} <= {"F16", "F32"}
    assert {kind for kind, dims in kinds.values() if dims == 1} == {"F32"}
    assert sum(kind == "Q4_0" for kind, _ in kinds.values()) == dict(made.kinds)["Q4_0"]
    assert kinds["model.diffusion_model.time_embed.0.weight"] == ("F16", 2)


def test_nothing_is_left_of_an_export_that_failed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(event: Event) -> None:
        if event.stage == "check":
            raise Cancelled

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    small = place / "flux_dev-small"
    for format, name in (("gguf-q8_0", "x.gguf"), ("single-file", "x.safetensors")):
        with pytest.raises(Cancelled):
            export_folder(small, tmp_path / name, format=format, report=stop)
    monkeypatch.setattr("gguf.GGUFWriter.write_tensor_data", full)
    with pytest.raises(UserError, match="the disk is full") as caught:
        export_folder(small, tmp_path / "x.gguf", format="gguf-q8_0")
    assert "Nothing was left" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []
    plain = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return plain(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="not installed"):
        export_folder(small, tmp_path / "x.gguf", format="gguf-q8_0")
