"""Over a thousand damaged files: each opens or is refused in words, soon, in little memory."""

from __future__ import annotations

import io
import json
import pickle
import random
import resource
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.capture import toy
from tests.chaos import mutants
from tests.jobs.conftest import draw
from tests.jobs.conftest import toy as compression
from vqdq.capture import archive
from vqdq.capture.record import record
from vqdq.capture.records import ActivationRecord
from vqdq.errors import UserError
from vqdq.jobs import batch, grid_records, provenance, run
from vqdq.jobs.draw import save_png
from vqdq.jobs.grid_records import GridRow
from vqdq.jobs.protocol import Protocol
from vqdq.jobs.requests import Axis, CompareRequest, GridRequest, request_from_json
from vqdq.jobs.store import Workspace
from vqdq.jobs.sweep_file import Sweep, read_sweep
from vqdq.models.calibration_folder import open_calibration
from vqdq.models.prompt_sets import read_prompt_set
from vqdq.models.sensitivity import Sensitivity
from vqdq.recipe import Recipe, load_recipe
from vqdq.report.source import open_run

ROOT = Path(__file__).parents[2]
PRESETS = sorted((ROOT / "presets").glob("*.json"))
MOST_SECONDS, MOST_BYTES = 5.0, 1 << 30


@pytest.fixture(autouse=True)
def _little_memory():
    """Nothing here may take a gigabyte more than there was."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_BYTES


def refused(task, case: object) -> bool:
    """Returns whether a task was refused in words; another exception or a long time fails."""
    start = time.process_time()
    try:
        task()
        answer = False
    except UserError as error:
        answer = bool(error.what)
    except BaseException as error:
        raise AssertionError(f"{case}: {type(error).__name__}: {error}") from error
    assert time.process_time() - start < MOST_SECONDS, case
    return answer


def attack(name: str, count: int, made, task) -> int:
    """Returns how many of `count` damaged inputs were refused."""
    found = 0
    for case, chance in mutants.chances(name, count):
        found += refused(lambda chance=chance: task(made(chance)), case)
    assert found > count // 10  # the damage is damage
    return found


def test_recipes(tmp_path):
    whole = [json.loads(path.read_text()) for path in PRESETS]
    path = tmp_path / "recipe.json"

    def task(content: bytes) -> None:
        path.write_bytes(content)
        recipe = load_recipe(path, tmp_path)
        assert Recipe.from_json(recipe.to_json()) == recipe

    attack("recipe", 250, lambda c: mutants.text_of(c, c.choice(whole)), task)


def test_sweep_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine, other = (json.loads(path.read_text()) for path in PRESETS[:2])
    (tmp_path / "mine.json").write_text(json.dumps(mine))
    (tmp_path / "prompts.txt").write_text("a red circle\na blue ring\n")
    drawn = {"steps": 2, "guidance": 3, "metrics": ["psnr", "flip"], "threads": 2, "card_gb": 8}
    listed = {"recipes": ["mine.json", other], "prompts": ["a ring"], "seeds": [1, 2]}
    named = {"recipes": ["w8a8"], "prompts": {"set": "demo examples", "sample": 3}, "seeds": "1-4"}
    filed = listed | {"prompts": {"set": "prompts.txt", "sample": 1, "seed": 3, "by": None}}
    whole = [{"version": 1, "name": "n", "models": ["demo"]} | drawn | of for of in
             (listed, named, filed)]  # fmt: skip
    for values in whole:
        assert Sweep.from_json(values, folder=tmp_path, presets=PRESETS[0].parent).count > 3
    path, read = tmp_path / "sweep.json", set()
    real = Path.read_text, Path.read_bytes

    def task(content: bytes) -> None:
        path.write_bytes(content)
        with monkeypatch.context() as watch:
            for function in real:
                watch.setattr(Path, function.__name__, _noting(function, read))
            sweep = read_sweep(path, PRESETS[0].parent)
        again = json.loads(
            json.dumps(sweep.to_json(), ensure_ascii=False, allow_nan=False).encode()
        )
        assert Sweep.from_json(again, folder=tmp_path, presets=PRESETS[0].parent) == sweep
        assert sweep.digest
        assert {picture.drawer.model for picture in sweep.pictures} == set(sweep.models)

    attack("sweep", 200, lambda c: mutants.text_of(c, c.choice(whole)), task)
    places = (tmp_path, PRESETS[0].parent)
    assert {
        file for file in read if not any(file.is_relative_to(place) for place in places)
    } == set()
    assert {tmp_path / "mine.json", tmp_path / "prompts.txt"} <= read


def test_a_sweep_file_names_no_file_outside_its_folder(tmp_path):
    folder, secret = tmp_path / "sweep", tmp_path / "secret.txt"
    folder.mkdir()
    secret.write_text("the password\n")
    (tmp_path / "secret.json").write_text(PRESETS[0].read_text())
    (folder / "link.txt").symlink_to(secret)
    (folder / "link.json").symlink_to(tmp_path / "secret.json")
    for name in ("../secret", f"{tmp_path}/secret", "link", "~/secret", "sub/../../secret"):
        for values in (
            {"prompts": {"set": f"{name}.txt"}, "recipes": ["w8a8"]},
            {"prompts": ["a ring"], "recipes": [f"{name}.json"]},
        ):
            with pytest.raises(UserError, match=r"beside|no recipe|cannot be read") as caught:
                Sweep.from_json(values, folder=folder, presets=PRESETS[0].parent)
            assert "password" not in str(caught.value)


def test_pictures(tmp_path):
    path = tmp_path / "picture.png"
    values = {
        "model": "demo", "prompt": "a red circle", "seed": 1, "steps": 20, "guidance": 3.0,
        "recipe": "x", "compression": json.loads(PRESETS[0].read_text()), "versions": {},
    }  # fmt: skip
    save_png(path, Image.new("RGB", (8, 8)), values)
    whole = path.read_bytes()

    def damaged(chance: random.Random) -> bytes:
        if chance.random() < 0.5:
            return mutants.bytes_of(chance, whole)
        try:
            save_png(path, Image.new("RGB", (8, 8)), mutants.json_of(chance, values))
        except UnicodeEncodeError:
            return b""
        return path.read_bytes()

    def task(content: bytes) -> None:
        path.write_bytes(content)
        provenance.read(path)

    attack("picture", 200, damaged, task)


def test_prompt_files(tmp_path):
    coco = {"annotations": [{"image_id": n, "caption": f"a {n}", "id": n} for n in range(5)]}
    listed = {"prompts": ["a circle", {"prompt": "a ring", "category": "x", "challenge": "y"}]}
    whole = {
        ".txt": b"a red circle\na blue ring\n",
        ".csv": b'prompt,category\n"a red, round circle",x\na ring,y\n',
        ".tsv": b'Prompt\tCategory\n"a ring\tx\na circle\ty\n',
    }

    def damaged(chance: random.Random) -> tuple[str, bytes]:
        ending = chance.choice((*whole, ".json", ".json"))
        if ending == ".json":
            return ending, mutants.text_of(chance, chance.choice((coco, listed)))
        return ending, mutants.bytes_of(chance, whole[ending])

    def task(made: tuple[str, bytes]) -> None:
        path = tmp_path / f"prompts{made[0]}"
        path.write_bytes(made[1])
        assert all(prompt.text for prompt in read_prompt_set(path).prompts)

    attack("prompts", 250, damaged, task)


def test_captures(tmp_path):
    path, marker = tmp_path / "record.npz", tmp_path / "ran"
    model = toy.unet()
    with record(model, guided=False) as recorder:
        toy.draw(model)
    recorder.result().save(path)
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as opened:
        parts = {name: opened.read(name) for name in opened.namelist()}
    header = json.loads(bytes(np.load(io.BytesIO(parts["header.npy"]))))

    class Evil:
        def __reduce__(self):
            return (Path.touch, (marker,))

    evil = np.empty(1, dtype=object)
    evil[0] = Evil()
    packed = io.BytesIO()
    np.lib.format.write_array(packed, evil, allow_pickle=True)

    def damaged(chance: random.Random) -> bytes:
        if chance.random() < 0.4:
            return mutants.bytes_of(chance, whole)
        text = json.dumps(mutants.json_of(chance, header)).encode("utf-8", "surrogatepass")
        made = dict(parts)
        made["header.npy"] = _npy(np.frombuffer(text, dtype=np.uint8))
        victim = chance.choice(sorted(parts))
        match chance.randrange(4):
            case 0:
                made[victim] = packed.getvalue()
            case 1:
                made[victim] = mutants.bytes_of(chance, made[victim])
            case 2:
                del made[victim]
            case _:
                made[victim] = _npy(np.zeros((2, 3, 4)))
        return _zip(made)

    def task(content: bytes) -> None:
        path.write_bytes(content)
        ActivationRecord.load(path)

    attack("capture", 120, damaged, task)
    assert not marker.exists()
    assert pickle.loads(pickle.dumps(evil[0])) is None  # it would have run, had it been opened
    assert marker.exists()


def test_a_file_that_would_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "_MOST_BYTES", 1 << 24)
    path = tmp_path / "bomb.npz"
    zeros = np.zeros(1 << 20, dtype=np.uint8)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for number in range(40):
            with made.open(f"a{number}.npy", "w") as member:
                np.lib.format.write_array(member, zeros)
    assert path.stat().st_size < 1 << 17
    with pytest.raises(UserError, match=r"unpack to 0\.0419 GB"):
        archive.load(path, kind="activations", version=2)
    lie = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        lie, {"descr": "|u1", "fortran_order": False, "shape": (1 << 45,)}
    )
    path.write_bytes(_zip({"header.npy": lie.getvalue()}))
    assert refused(lambda: archive.load(path, kind="activations", version=2), "a lie")


def test_results_and_requests(tmp_path):
    row = dict.fromkeys(sorted(GridRow.__required_keys__)) | {
        "key": "k", "image": "k.png", "label": "l", "prompt": "p", "seed": 1,
    }  # fmt: skip
    asked = CompareRequest(model="demo", variants=("a",), prompt="p")
    lines = {"set": 0, "model": 1, "picture": {"image": "x.png", "variant": "a"}}
    requests = [
        draw().to_json(), compression().to_json(), asked.to_json(),
        GridRequest(model="demo", axes=(Axis(name="bits", values=(3, 16)),), prompt="p").to_json(),
    ]  # fmt: skip

    def rows(content: bytes) -> None:
        (tmp_path / grid_records.FILE).write_bytes(content)
        found = grid_records.read(tmp_path)
        assert all(isinstance(grid_records.is_done(row, tmp_path), bool) for row in found.values())
        (tmp_path / batch.FILE).write_bytes(content)
        batch.read(tmp_path, asked)

    for case, chance in mutants.chances("rows", 100):
        content = b"\n".join(mutants.text_of(chance, chance.choice((row, lines))) for _ in "ab")
        refused(lambda content=content: rows(content), case)

    def request(values) -> None:
        made = request_from_json(values)
        assert request_from_json(json.loads(json.dumps(made.to_json()))) == made

    attack("request", 200, lambda c: mutants.json_of(c, c.choice(requests)), request)


def test_records_of_measurements(tmp_path):
    from tests.jobs.test_protocol import protocol

    folder = tmp_path / "calibration"
    folder.mkdir()
    (tmp_path / "secret.safetensors").write_bytes(b"x")
    group = {"file": "groups/0.safetensors", "layers": ["a"], "in_features": 8, "rows": 9}
    index = {"version": 1, "params": {"damping": 0.1}, "groups": [group, group]}
    effects = {
        "effects": {"a": [1.0, 2.0, [0.5]]},
        "calls": 1,
        "probes": 1,
        "seed": 0,
        "version": 1,
    }

    def calibration(content: bytes) -> None:
        (folder / "calibration.json").write_bytes(content)
        open_calibration(folder)

    attack("calibration", 100, lambda c: mutants.text_of(c, index), calibration)
    for bad in ("../secret.safetensors", str(tmp_path / "secret.safetensors"), ""):
        content = json.dumps(index | {"groups": [group | {"file": bad}]}).encode()
        assert refused(lambda content=content: calibration(content), bad)
    attack("protocol", 100, lambda c: mutants.json_of(c, protocol().to_json()), Protocol.from_json)
    attack("effects", 60, lambda c: mutants.json_of(c, effects), Sensitivity.from_json)


def test_a_history_with_damaged_files_opens(tmp_path):
    space = Workspace.open(tmp_path / "space")
    made = [space.submit(draw(seed=number)) for number in range(60)]
    for name, (_, chance) in zip(made[:-1], mutants.chances("history", 59), strict=True):
        path = space.runs_folder / name / "run.json"
        content = mutants.text_of(chance, run.read_json(path))
        path.write_bytes(content)
        refused(lambda folder=path.parent: open_run(folder), name)
    space.reindex()
    assert made[-1] in {record.id for record in space.runs(limit=99)}
    space.recover()
    while (taken := space.take()) is not None:
        space.finish(taken.id, "done")
    space.close()


def _noting(function, read: set[Path]):
    """The same function; the files that it is asked for are kept."""

    def noting(path: Path, *rest, **more):
        read.add(path.resolve())
        return function(path, *rest, **more)

    return noting


def _npy(array) -> bytes:
    made = io.BytesIO()
    np.save(made, array, allow_pickle=False)
    return made.getvalue()


def _zip(parts: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return made.getvalue()
