"""`vqdq grid`: what it costs, what it leaves in a folder, and how it goes on."""

from __future__ import annotations

import csv
import json

import pytest
from PIL import Image

from tests.models import tiny
from vqdq.cli import main


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(tiny.folder(tmp_path_factory.mktemp("cli-grid") / "tiny"))


def grid(model, output, *more):
    steps = ("--steps", "1", "--json", "--output", str(output))
    return main(["grid", model, *steps, *more])


def last(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_grid_leaves_pictures_a_sheet_and_tables_and_goes_on(model, tmp_path, capsys):
    output = tmp_path / "out"
    file = tmp_path / "mine.txt"
    file.write_text("a red circle\na blue ring\n")
    asked = ("--columns", "guidance=1..3:2", "--prompts", str(file), "--pages", "seed=4,5")
    assert grid(model, output, *asked, "--dry-run") == 0
    told = last(capsys)
    assert (told["cells"], told["pictures"], told["models_to_make"]) == (8, 8, 0)
    assert not output.exists()
    assert grid(model, output, *asked) == 0
    told = last(capsys)
    assert told["finished"]
    assert told["sheets"] == ["grid-1.png", "grid-2.png"]
    assert [cell["labels"] for cell in told["cells"][:2]] == [
        ["guidance 1", "seed 4", "a red circle"],
        ["guidance 3", "seed 4", "a red circle"],
    ]
    with (output / "grid.csv").open(newline="", encoding="utf-8") as text:
        rows = list(csv.DictReader(text))
    assert len(rows) == 8
    assert {row["image"] for row in rows} == {picture["image"] for picture in told["pictures"]}
    assert [row["guidance"] for row in rows] == ["1.0", "3.0"] * 4
    with Image.open(output / "grid-1.png") as sheet:
        assert json.loads(sheet.text["vqdq"])["kind"] == "grid"
        for row in rows:
            if row["page"] == rows[0]["page"]:
                with Image.open(output / row["image"]) as picture:
                    assert holds(sheet, picture)  # lossless, at its own size
    (output / rows[0]["image"]).unlink()
    kept = {path.name: path.stat().st_mtime_ns for path in output.glob("????????????????.png")}
    assert grid(model, output, *asked) == 0
    assert kept.items() <= {p.name: p.stat().st_mtime_ns for p in output.glob("*.png")}.items()
    assert (output / rows[0]["image"]).is_file()
    assert grid(model, output, "--columns", "seed=1", "--prompt", "x") == 2
    assert "another grid" in last(capsys)["error"]["what"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--columns", "seed", "--prompt", "x"), "has no values"),
        (("--columns", "seeds=1", "--prompt", "x"), "is no axis"),
        (("--columns", "seed=1"), "there is no prompt"),
        (("--columns", "seed=1", "--rows", "prompt"), "has no values"),
        (("--columns", "seed=1", "--prompt", "x", "--sample", "3"), "no set to sample"),
        (("--columns", "bits=7", "--prompt", "x"), "no cell can have a picture"),
        (("--columns", "seed=1-30", "--rows", "steps=1-30", "--prompt", "x"), "900 cells"),
    ],
)
def test_wrong_use_starts_nothing(model, tmp_path, capsys, words, said):
    assert grid(model, tmp_path / "none", *words) == 2
    assert said in last(capsys)["error"]["what"]
    assert not (tmp_path / "none").exists()


def holds(sheet, picture) -> bool:
    """Whether `picture` lies in `sheet` somewhere, pixel by pixel."""
    width, height = picture.size
    wanted = picture.convert("RGB").tobytes()
    corner = picture.convert("RGB").getpixel((0, 0))
    pixels = sheet.load()
    places = (
        (x, y)
        for y in range(sheet.height - height + 1)
        for x in range(sheet.width - width + 1)
        if pixels[x, y] == corner
    )
    return any(sheet.crop((x, y, x + width, y + height)).tobytes() == wanted for x, y in places)
