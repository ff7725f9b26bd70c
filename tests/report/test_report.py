"""A report: whole in one file, every word escaped, the same numbers in all three files."""

from __future__ import annotations

import base64
import csv
import io
import json
import re

import pytest
from PIL import Image

from tests.jobs.conftest import toy
from tests.ui import blind_world, toy_grid
from vqdq.errors import UserError
from vqdq.jobs import grid
from vqdq.jobs.draw import save_png
from vqdq.jobs.requests import Axis, CompareRequest, GridRequest
from vqdq.jobs.run import write_json
from vqdq.jobs.store import Workspace
from vqdq.progress import silent
from vqdq.recipe import Recipe
from vqdq.report import bundle, card
from vqdq.report.bundle import write
from vqdq.report.source import open_run
from vqdq.rules import Rule
from vqdq.ui.desk import Desk

EVIL = '=1+1 <img src=x onerror="alert(1)"> </script><b>'
RECIPE = Recipe.from_json(
    Recipe(name="toy", rules=(Rule(pattern="*", method="uniform"),)).to_json()
)


def picture(folder, name, label, shade, **more):
    recipe = {"model": label, "prompt": "p", "seed": 0, "steps": 1, "guidance": 1.0}
    save_png(
        folder / f"{name}.png",
        Image.new("RGB", (8, 8), (shade, 0, 0)),
        recipe | {"recipe": "toy", "compression": RECIPE.to_json() if more else None},
    )
    verdict = {"passed": not more, "count": True, "shapes": not more}
    return {
        "variant": label, "label": label, "image": f"{name}.png", "seconds": 0.5,
        "peak_memory_bytes": 300_000_000, "bytes": 11_000_000, "reference_bytes": 57_000_000,
        "bits_per_weight": 3.0, "arithmetic": None, "activations": "", "verdict": verdict,
        "initial_latent_sha256": "ab" * 32,
    } | more  # fmt: skip


def compared(workspace, psnr=(31.25, None)):
    """A finished comparison with two variants in the workspace."""
    names = tuple(f"v{n} {EVIL}" for n in range(len(psnr)))
    run = workspace.submit(CompareRequest(model="demo", variants=names, prompt=EVIL, seed=7))
    folder = workspace.take().folder
    rows = []
    for place, (name, value) in enumerate(zip(names, psnr, strict=True), 1):
        save_png(folder / f"{place}-error.png", Image.new("L", (8, 8)))
        rows.append(
            picture(folder, place, name, 9 * place, psnr=value, ssim=0.9, latent_cosine=0.99,
                    flip=0.01, error_map=f"{place}-error.png")
        )  # fmt: skip
    proof = {"same_start": True, "problems": [f"odd {EVIL}"], "versions": {"torch": "2"}}
    result = {"reference": picture(folder, "reference", "FP16", 0), "variants": rows}
    workspace.finish(run, "done", result=result | {"certificate": proof, "seconds": 1.0})
    return workspace.run(run)


@pytest.fixture
def space(tmp_path):
    made = Workspace.open(tmp_path / "space")
    yield made
    made.close()


def test_a_comparison_is_whole_escaped_and_the_same_in_three_files(space, tmp_path):
    run = compared(space)
    assert open_run(run.folder).request == run.request
    made = write(run, tmp_path / "seen.html")
    page = made.html.read_text()
    bare = re.sub(r"<(style|script)>.*?</\1>|data:image/png;base64,[\w+/=]+", "", page, flags=re.S)
    assert "<img src=x" not in bare
    assert "onerror=&quot;" in bare
    assert not re.search(r"(?:src|href|action)=[\"'](?!data:|#|)", bare)
    assert "http:" not in bare.replace("http://www.w3.org/", "")
    assert "https:" not in bare
    assert "default-src 'none'" in bare
    shown = [base64.b64decode(data) for data in re.findall(r"base64,([\w+/=]+)", page)]
    disk = {path.read_bytes() for path in run.folder.glob("*.png")}
    assert set(shown) == disk
    assert 'class="bad">odd' in bare
    assert "31.2 dB" in bare
    assert "exact" in bare
    assert RECIPE.digest[:12] in bare
    rows = list(csv.DictReader(io.StringIO(made.csv.read_text())))
    assert [row["psnr"] for row in rows] == ["", "31.25", ""]
    assert [row["equal"] for row in rows] == ["False", "False", "True"]
    assert rows[0]["prompt"] == f"'{EVIL}"  # no spreadsheet computes it
    values = json.loads(made.json.read_text())
    assert values["variants"][0]["psnr"] == 31.25
    assert values["request"]["prompt"] == EVIL


def test_a_full_file_says_what_it_leaves_out(space, tmp_path):
    run = compared(space)
    (run.folder / "1.png").unlink()
    made = write(run, tmp_path / "seen.html", budget=300)
    page = made.html.read_text()
    assert made.left_out > 0
    assert f"{made.left_out} pictures were left out" in page
    assert "the file is missing" in page


def test_a_blind_test_has_a_report_only_after_its_end(space, tmp_path):
    desk = Desk(space, "demo")
    blind_world.add_models(space)
    run = space.run(blind_world.drawn(desk, repeats=0.0, identical=0, obvious=0))
    with pytest.raises(UserError, match="only at the end"):
        write(run, tmp_path / "no.html", votes=desk.votes)
    assert not (tmp_path / "no.html").exists()
    with pytest.raises(UserError, match="has no report"):
        write(run, tmp_path / "no.html")
    from vqdq.ui import blind

    asked = blind.vote(desk, run.id, "Ana <b>")
    while not asked["done"]:
        asked = blind.vote(desk, run.id, "Ana <b>", "a", asked["ballot"], asked["question"])
    blind.results(desk, run.id, reveal=True)
    made = write(run, tmp_path / "yes.html", votes=desk.votes)
    page = made.html.read_text()
    assert "Ana &lt;b&gt;" in page
    assert "Ana <b>" not in page
    assert page.count("data:image/png;base64,") == 8
    assert run.request.test in page
    values = json.loads(made.json.read_text())
    assert len(values["votes"]) == 4
    assert len(made.csv.read_text().splitlines()) == 5


def test_a_grid_is_a_table_of_its_pictures(space, tmp_path, monkeypatch):
    monkeypatch.setattr(grid, "draw", grid.draw)  # the toy puts another one in its place
    prompts = ("a large red ring on a plain sand background", "a small teal heart on a plain navy"
               " background")  # fmt: skip
    axes = (Axis(name="seed", values=(1, 2, 3)), Axis(name="prompt", values=prompts))
    run = space.submit(GridRequest(model="demo", axes=axes, prompt="", steps=1))
    record = space.take()
    made = toy_grid.execute(record.request, record.folder, space.path, silent)
    space.finish(run, "done", result=dict(made))
    written = write(space.run(run), tmp_path / "grid.html")
    page = written.html.read_text()
    assert page.count("data:image/png;base64,") == 6
    assert [page.index(word) for word in ("seed 1", "seed 2", "seed 3")]
    rows = list(csv.DictReader(io.StringIO(written.csv.read_text())))
    assert [(row["seed"], row["prompt"]) for row in rows] == [
        (str(seed), prompt) for prompt in prompts for seed in (1, 2, 3)
    ]
    assert [row["shows_what_was_asked"] for row in rows] == ["True", "True", "False"] * 2
    assert open_run(record.folder).request == record.request


def test_what_is_no_run_is_told(space, tmp_path):
    for folder, words in ((tmp_path / "absent", "no such folder"), (tmp_path, "holds no run")):
        with pytest.raises(UserError, match=words):
            open_run(folder)
    run = space.submit(toy())
    with pytest.raises(UserError, match="no result yet"):
        open_run(space.run(run).folder)


def test_tables_hold_no_formulas():
    text = bundle.to_csv([{"a": "=cmd", "b": -1.5}, {"a": "+x", "b": None}, {"a": "fine", "b": 2}])
    assert text == "a,b\n'=cmd,-1.5\n'+x,\nfine,2\n"


def test_a_card_gets_the_numbers_and_replaces_older_ones(space):
    folder = space.models_folder / f"v0 {EVIL}".replace("/", "")[:2]
    folder.mkdir()
    for name, content in (("model_index", {}), ("vqdq", {"weight_bytes": 7})):
        write_json(folder / f"{name}.json", content)
    (folder / "README.md").write_text("# Toy\n")
    with pytest.raises(UserError, match="never compared"):
        card.measured(folder, space.path)
    for psnr in (20.0, 30.0, 40.0):
        run = compared(space, (psnr,))
        values = json.loads((run.folder / "result.json").read_text())
        values["variants"][0]["variant"] = folder.name
        values["variants"][0]["psnr"] = psnr
        write_json(run.folder / "result.json", values)
        record = json.loads((run.folder / "run.json").read_text())
        record["request"]["seed"] = int(psnr)
        write_json(run.folder / "run.json", record)
    found = card.measured(folder, space.path)
    assert found.count == 3
    assert dict(found.rows)["PSNR"] == "30.0 dB (median of n = 3, 20.0 – 40.0)"
    card.update(folder, found)
    once = card.update(folder, found).read_text()
    assert once.startswith("# Toy\n")
    assert once.count("PSNR") == 1
