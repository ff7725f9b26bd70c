"""`--offload` and `--device` on the command line, on a computer without a card."""

from __future__ import annotations

import json

import torch

from tests.test_cli import fails, here, place
from vqdq.cli import main

__all__ = ["here", "place"]


def test_offload_is_refused_where_it_does_nothing_and_says_so_on_a_processor(
    capsys, place, here, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ["--prompt", "a red circle", "--steps", "1", "--offload"]
    one = ["generate", place / "small", *words, "--output", "x.png"]
    assert "nothing to bring to a card later" in fails(capsys, 2, *one)
    both = ["compare", place / "tiny", place / "small", *words, "--output", "seen"]
    assert "choose streaming or hybrid" in fails(capsys, 2, *both, "--mode", "integer")
    streaming = ["--mode", "streaming"]
    assert "no graphics card here" in fails(capsys, 2, *one, *streaming, "--device", "cuda")
    assert list(here.iterdir()) == []
    assert main([str(word) for word in (*one, *streaming)]) == 0
    said = "--offload changed nothing: it was drawn on the processor"
    assert said in capsys.readouterr().out
    assert main([str(word) for word in (*both, *streaming, "--json")]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["request"]["offload"]
    assert (report["variants"][0]["offload"], report["variants"][0]["waiting_bytes"]) == (True, 0)
    assert "offload" not in report["reference"]
