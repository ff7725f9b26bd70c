"""The command line on a tiny model: results, exit codes and messages; one real process."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models import tiny
from vqdq.cli import main
from vqdq.cli.terminal import bar
from vqdq.jobs import compress
from vqdq.progress import Event

RULE = {"pattern": "*attn2*", "method": "uniform", "params": {"bits": 4}}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def write_recipe(path, *, rule=RULE, **values):
    path.write_text(json.dumps({"version": 1, "name": "mine", "rules": [rule]} | values))
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny model, its compressed twin and a recipe."""
    folder = tmp_path_factory.mktemp("cli")
    tiny.folder(folder / "tiny")
    write_recipe(folder / "recipe.json")
    words = ["compress", str(folder / "tiny"), "--recipe", str(folder / "recipe.json")]
    assert main([*words, "--output", str(folder / "small"), "--json"]) == 0
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fails(capsys, code, *words):
    """Returns the message of a command that ends with `code`: place, fact, remedy, no traceback."""
    assert main([str(word) for word in words]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "vqdq: " in err
    assert "Traceback" not in err
    assert len(err.splitlines()) >= 2, "there is no remedy"
    return err


def copied(place, target):
    return Path(shutil.copytree(place / "tiny", target))


# Wrong use: exit code 2


def test_without_a_command(capsys):
    assert main([]) == 2
    assert "vqdq compress demo --recipe trellis-3bit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["compres"], 'Did you mean "compress"?'),
        (["plan", "demo"], "--recipe"),
        (["plan", "demo", "--recipe", "vq-3bit", "--colour"], "--colour"),
        (["generate", "demo", "--prompt", "x", "--seed", "one", "--output", "x.png"], "--seed"),
    ],
)
def test_wrong_words(capsys, words, says):
    assert says in fails(capsys, 2, *words)


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--prompt", "", "prompt: the prompt is empty"),
        ("--prompt", "a" * 10_000, "10,000 characters"),
        ("--seed", "-1", "seed: -1 is out of range"),
        ("--seed", str(2**64), "Use 0 to 2^63 - 1"),
        ("--steps", "0", "steps: 0 is out of range"),
        ("--guidance", "nan", "guidance: nan is out of range"),
        ("--output", "x.jpg", "is not a PNG"),
        ("--output", "nowhere/x.png", "no such folder"),
    ],
)
def test_bad_values(capsys, here, flag, value, says):
    words = {"--prompt": "a circle", "--seed": "1", "--output": "x.png"} | {flag: value}
    flat = [part for pair in words.items() for part in pair]
    assert says in fails(capsys, 2, "generate", "demo", *flat)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("rule", "values", "says"),
    [
        (RULE | {"method": "trelis"}, {}, 'Did you mean "trellis"?'),
        (RULE | {"params": {"bits": 9}}, {}, "bits: 9 is out of range"),
        (RULE | {"params": {"bitts": 3}}, {}, 'Did you mean "bits"?'),
        (RULE | {"patern": "*"}, {}, 'Did you mean "pattern"?'),
        (RULE, {"sede": 1}, 'Did you mean "seed"?'),
        (RULE | {"pattern": "nothing*"}, {}, 'no layer of the unet matches "nothing*"'),
    ],
)
def test_recipes_with_a_fault(capsys, place, here, rule, values, says):
    recipe = write_recipe(here / "mine.json", rule=rule, **values)
    assert says in fails(capsys, 2, "plan", place / "tiny", "--recipe", recipe)


def test_recipes_that_are_none(capsys, place, here):
    (here / "broken.json").write_text('{"rules": [')
    assert "broken.json:1:" in fails(
        capsys, 2, "plan", place / "tiny", "--recipe", here / "broken.json"
    )
    said = fails(capsys, 2, "plan", place / "tiny", "--recipe", "trelis-3bit")
    assert 'Did you mean "trellis-3bit"?' in said


def test_what_is_no_model(capsys, place, here):
    recipe = place / "recipe.json"
    assert "does not exist" in fails(capsys, 2, "plan", here / "nothing", "--recipe", recipe)
    (here / "empty").mkdir()
    assert "no diffusers model" in fails(capsys, 2, "plan", here / "empty", "--recipe", recipe)
    (here / "model.ckpt").write_bytes(b"\x80\x04")
    assert "pickled" in fails(capsys, 2, "plan", here / "model.ckpt", "--recipe", recipe)
    small = place / "small"
    assert "compressed" in fails(capsys, 2, "plan", small, "--recipe", recipe)
    assert "is not compressed" in fails(capsys, 2, "verify", place / "tiny")


def test_an_output_that_exists_is_not_touched(capsys, place, here):
    (here / "out").mkdir()
    (here / "out" / "mine.txt").write_text("keep")
    recipe = ["--recipe", place / "recipe.json"]
    words = ["compress", place / "tiny", *recipe, "--output", here / "out"]
    assert "already exists; nothing was changed" in fails(capsys, 2, *words)
    assert [item.name for item in (here / "out").iterdir()] == ["mine.txt"]


# The work failed: exit code 1


def test_a_truncated_file(capsys, place, here):
    model = copied(place, here / "tiny")
    data = (model / WEIGHTS).read_bytes()
    (model / WEIGHTS).write_bytes(data[: len(data) // 2])
    words = ["compress", model, "--recipe", place / "recipe.json", "--output", here / "out"]
    assert "diffusion_pytorch_model.safetensors" in fails(capsys, 1, *words)
    (model / WEIGHTS).write_bytes(b"\xff" * 100)
    assert "safetensors" in fails(capsys, 1, *words)
    assert not (here / "out").exists()


def test_weights_that_are_not_numbers(capsys, place, here):
    model = copied(place, here / "tiny")
    tensors = load_file(model / WEIGHTS)
    name = next(key for key in tensors if "attn2.to_k" in key)
    tensors[name][0, 0] = torch.nan
    save_file(tensors, model / WEIGHTS, metadata={"format": "pt"})
    words = ["compress", model, "--recipe", place / "recipe.json", "--output", here / "out"]
    said = fails(capsys, 1, *words)
    assert "NaN" in said
    assert name.removesuffix(".weight") in said
    assert not (here / "out").exists()


def test_a_full_disk(capsys, place, here, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", str(here / "out"))

    monkeypatch.setattr(compress, "execute", full)
    words = ["compress", place / "tiny", "--recipe", place / "recipe.json"]
    assert "the disk is full" in fails(capsys, 1, *words, "--output", here / "out")


def test_an_unreadable_file(capsys, place, here):
    model = copied(place, here / "tiny")
    (model / WEIGHTS).unlink()
    (model / WEIGHTS).mkdir()  # nobody can read this as a file, not even the superuser
    said = fails(capsys, 1, "plan", model, "--recipe", place / "recipe.json")
    assert "diffusion_pytorch_model.safetensors" in said


def test_ctrl_c_says_how_to_go_on(capsys, place, here, monkeypatch):
    def stopped(request, *_args, **_kwargs):
        Path(request.output + ".partial").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(compress, "execute", stopped)
    words = ["compress", place / "tiny", "--recipe", place / "recipe.json"]
    said = fails(capsys, 130, *words, "--output", here / "out")
    assert "out.partial; the same command goes on" in said


def test_faults_for_programs(capsys):
    assert main(["plan", "demo", "--recipe", "trelis-3bit", "--json"]) == 2
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["error"]["where"] == "recipe"
    assert last["error"]["remedy"] == 'Did you mean "trellis-3bit"?'


# What works: exit code 0


def test_compress_for_programs(capsys, place, here):
    words = [
        "compress",
        place / "tiny",
        "--recipe",
        place / "recipe.json",
        "--output",
        here / "out",
    ]
    assert main([*map(str, words), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line.get("event") for line in lines[:-1]} == {"progress"}
    last = lines[-1]
    stored = (here / "out" / WEIGHTS).stat().st_size
    assert last["output"] == str(here / "out")
    assert last["predicted_bytes"] == last["measured_bytes"] == stored
    assert 4 < last["bits_per_weight"] < 6
    assert last["seconds"] > 0
    assert last["peak_memory_bytes"] > 1e6
    twin = place / "small" / WEIGHTS
    assert (here / "out" / WEIGHTS).read_bytes() == twin.read_bytes()


def test_plan_promises_what_compress_writes(capsys, place):
    words = ["plan", str(place / "tiny"), "--recipe", str(place / "recipe.json")]
    assert main([*words, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["predicted_bytes"] == (place / "small" / WEIGHTS).stat().st_size
    assert values["quantized_layers"] == sum(
        layer["method"] is not None for layer in values["layers"]
    )
    assert main([*words, "--layers"]) == 0
    text = capsys.readouterr().out
    assert f"({values['predicted_bytes']:,} bytes)" in text
    assert len(text.splitlines()) == 8 + len(values["modes"]) + len(values["layers"])


def test_verify_finds_a_changed_byte(capsys, place, here):
    assert main(["verify", str(place / "small")]) == 0
    assert "in order" in capsys.readouterr().out
    changed = Path(shutil.copytree(place / "small", here / "changed"))
    data = bytearray((changed / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (changed / WEIGHTS).write_bytes(data)
    assert main(["verify", str(changed), "--json"]) == 1
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not values["ok"]
    assert any(WEIGHTS in problem for problem in values["problems"])


def test_generate_draws_an_emoji_prompt(capsys, place, here):
    words = [
        "generate",
        str(place / "small"),
        "--prompt",
        "a red 🔴",
        "--steps",
        "2",
        "--seed",
        "3",
    ]
    assert main([*words, "--output", "x.png", "--json"]) == 0
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert values["output"] == str(here / "x.png")
    assert values["verdict"] is None
    assert values["verdict_reason"]
    assert (here / "x.png").read_bytes().startswith(b"\x89PNG")
    assert main([*words, "--output", "x.png"]) == 2


def test_compare_writes_pictures_and_a_page(capsys, place, here):
    words = ["compare", str(place / "tiny"), str(place / "small"), "--prompt", "a red circle"]
    assert main([*words, "--steps", "2", "--output", "seen"]) == 0
    text = capsys.readouterr().out
    assert "index.html shows them side by side." in text
    names = {f"1-small{kind}.png" for kind in ("", "-error", "-flip")}
    names |= {"reference.png", "report.json", "report.csv", "index.html"}
    assert {item.name for item in (here / "seen").iterdir()} == names
    report = json.loads((here / "seen" / "report.json").read_text())
    assert report["certificate"]["same_start"]
    assert 0 < report["variants"][0]["flip"] < 1
    page = (here / "seen" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "http:" not in page
    assert "https:" not in page
    assert main(["report", "seen", "--output", "again.html"]) == 0
    again = (here / "again.html").read_text()
    assert again.count("data:image/png;base64,") == 4
    assert main(["report", "seen", "--output", "again.html"]) == 2
    assert main(["report", "nowhere", "--output", "none.html"]) == 2
    for name in ("again.html", "again.csv", "again.json"):
        (here / name).unlink()
    assert list(here.glob(".*")) == []


def test_compare_many_prompts_against_the_floor(capsys, place, here):
    (here / "prompts.txt").write_text("a red circle\n\na blue square\n")
    words = ["compare", str(place / "tiny"), str(place / "small"), "--steps", "1", "--floor"]
    assert main([*words, "--prompts", "prompts.txt", "--output", "many"]) == 0
    text = capsys.readouterr().out
    assert "2 sets, medians" in text
    assert "floor" in text
    report = json.loads((here / "many" / "report.json").read_text())
    assert [each["prompt"] for each in report["pictures"]] == ["a red circle", "a blue square"]
    first, second = report["pictures"]
    assert first["floor"]["repeat"]["psnr"] is None
    assert second["floor"]["repeat"] is None
    assert 0 < second["floor"]["rounding"]["flip"] < 1
    assert (here / "many" / "002-1-small.png").is_file()
    assert main([*words, "--prompts", "nowhere.txt", "--output", "none"]) == 2
    assert main([*words, "--output", "none"]) == 2


def test_methods(capsys):
    assert main(["methods", "--json"]) == 0
    found = {item["name"]: item for item in json.loads(capsys.readouterr().out)["methods"]}
    assert {"uniform", "additive", "trellis"} <= found.keys()
    bits = next(item for item in found["uniform"]["settings"] if item["name"] == "bits")
    assert (bits["low"], bits["high"]) == (2, 8)
    assert main(["methods"]) == 0
    assert "QTIP" in capsys.readouterr().out


def test_doctor(capsys, here):
    code = main(["doctor", "--json", "--workspace", str(here / "space")])
    values = json.loads(capsys.readouterr().out)
    assert code == (0 if values["ok"] else 1)
    assert values["workspace_writable"]
    assert values["versions"]["torch"] == torch.__version__
    assert {item["op"] for item in values["kernels"]} >= {"trellis_encode", "hadamard"}
    (here / "file").write_text("")
    assert main(["doctor", "--json", "--workspace", str(here / "file")]) == 1


# The terminal


def test_bar():
    drawn = bar(Event(stage="encode", done=41, total=118, message="conv_in"), 7.0)
    assert drawn == "encode      [########................]  41/118  7 s left  conv_in"
    assert bar(Event(stage="plan", message="demo"), None) == "plan        demo"


def test_a_real_process_answers_without_loading_torch():
    code = "import sys, vqdq.cli; vqdq.cli.main([]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
    done = subprocess.run(
        [sys.executable, "-m", "vqdq", "--version"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "vqdq")
    wrong = subprocess.run([sys.executable, "-m", "vqdq", "plan"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert wrong.stdout == ""
    assert "--recipe" in wrong.stderr
