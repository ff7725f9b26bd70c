"""The script for a card runs end to end without one: tiny sizes, Triton's interpreter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_bench, gpu_denoiser, gpu_peers


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a card the script itself is run")
def test_the_script_measures_prints_a_table_last_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: torch.nn.Module) -> torch.nn.Module:
        raise ValueError("no card")

    peers = (
        gpu_peers.Peer(library="torch", name="same", make=lambda model: model),
        gpu_peers.Peer(library="torch", name="broken", make=broken),
        gpu_peers.Peer(library="no_such_library", name="absent", make=broken),
    )
    monkeypatch.setattr(gpu_peers, "PEERS", peers)
    monkeypatch.setattr(gpu_peers, "SMALL", gpu_denoiser.TINY)
    path = tmp_path / "gpu.json"
    sections = ["ceilings", "products", "few rows", "denoiser", "peers"]
    assert gpu.main(["--interpret", "--output", str(path), "--only", *sections]) == 0
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert stored["faults"] == []
    assert {row["section"] for row in stored["rows"]} == set(sections)
    named = {row["name"]: row for row in stored["rows"]}
    assert named["W3A8, layers in integers"]["value"] == 1
    assert named["W3A8, layers in 8-bit floats"]["value"] == 1
    assert named["same"]["value"] > 0
    for name, why in (("broken", "fails here: ValueError: no card"), ("absent", "not installed")):
        assert (named[name]["unit"], named[name]["note"]) == (gpu_bench.NOTHING, why)
    assert "interpreter" in stored["environment"]["card"]
    printed = capsys.readouterr().out.strip().splitlines()
    assert printed[-1] == "0 of 0 checks pass; 0 sections failed"
    assert "| peers | absent | – | – | not installed |" in printed
    assert sum(line.startswith("| denoiser |") for line in printed) == sum(
        row["section"] == "denoiser" for row in stored["rows"]
    )


def test_a_section_that_breaks_is_written_down_and_the_next_one_runs() -> None:
    bench = gpu_bench.Bench(device=torch.device("cpu"), tiny=True)
    with gpu.section(bench, "first", 10):
        raise RuntimeError("no such kernel")
    with gpu.section(bench, "second", -1):
        assert bench.is_late
    assert bench.faults == ["first: RuntimeError: no such kernel"]


def test_without_a_card_nothing_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    assert gpu.main([]) == 2
    assert "no card" in capsys.readouterr().err
    assert "Not yet measured" in gpu.results()


def test_the_denoiser_has_the_layers_of_sdxl() -> None:
    """2.57 billion weights, of which 2.54 are compressed (the published UNet: 2.567)."""
    with torch.device("meta"):
        model = gpu_denoiser.Denoiser(gpu_denoiser.SDXL)
    total = sum(parameter.numel() for parameter in model.parameters())
    names = gpu_denoiser.packed_names(model)
    packed = sum(model.get_submodule(name).get_parameter("weight").numel() for name in names)
    assert total == pytest.approx(2.567e9, rel=0.005)
    assert packed == pytest.approx(2.54e9, rel=0.01)
