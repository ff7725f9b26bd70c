"""What the README shows is what happens: its Python blocks and its commands are run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = _blocks("python")
    assert len(blocks) >= 2
    names: dict[str, object] = {}
    for block in blocks:  # one after the other: later blocks use the names of earlier ones
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "demo-3bit" / "model_index.json").is_file()


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vqdq.cli import main

    monkeypatch.chdir(tmp_path)
    commands = [
        line.removeprefix("$ vqdq ").split("  #")[0]
        for block in _blocks("console")
        for line in block.splitlines()
        if line.startswith("$ vqdq ")
    ]
    assert len(commands) >= 6
    for command in commands:
        assert main(shlex.split(command)) == 0, f"vqdq {command}"


@pytest.mark.parametrize("target", re.findall(r"\]\((?!https?:|#)([^)]+)\)", README))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target.split("#")[0]).exists()
