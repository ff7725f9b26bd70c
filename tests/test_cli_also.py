"""`--also`: other components on the command line, planned and compressed to the byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.models import tiny
from vqdq.also import also
from vqdq.cli import main
from vqdq.errors import UserError
from vqdq.models.compressor import as_recipe
from vqdq.recipe import Recipe

RULES = [{"pattern": "*attn2.to_*", "method": "uniform", "params": {"bits": 4}}]
ALSO = ("--also", "text_encoder*=uniform:bits=4", "--also", "vae=int8")


def test_planned_compressed_and_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.folder(tmp_path / "tiny")
    (tmp_path / "mine.json").write_text(json.dumps({"name": "mine", "rules": RULES}))
    words = [str(model), "--recipe", str(tmp_path / "mine.json"), *ALSO]
    assert main(["plan", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    recipe = Recipe.from_json(found["recipe"])
    assert recipe.name == "mine-also-text_encoder-vae"
    assert [part.pattern for part in recipe.components] == ["vae", "text_encoder*"]
    kept = [rule.pattern for rule in recipe.components[0].rules if rule.method is None]
    assert kept == ["decoder.conv_in", "decoder.conv_out"]
    sizes = {row["component"]: row["predicted_bytes"] for row in found["other_components"]}
    assert found["total_bytes"] == found["predicted_bytes"] + sum(sizes.values())
    assert main(["plan", *words]) == 0
    text = capsys.readouterr().out
    assert all(f"{size:,} bytes" in text for size in (*sizes.values(), found["total_bytes"]))
    out = tmp_path / "small"
    assert main(["compress", *words, "--output", str(out), "--json"]) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    files = {
        "text_encoder": out / "text_encoder/model.safetensors",
        "vae": out / "vae/diffusion_pytorch_model.safetensors",
    }
    assert {row["component"]: row["measured_bytes"] for row in made["other_components"]} == sizes
    assert {name: path.stat().st_size for name, path in files.items()} == sizes
    card = (out / "README.md").read_text()
    assert card.count("| Also compressed |") == 2
    assert "size mismatch" in card
    assert main(["verify", str(out)]) == 0


def test_wishes_replace_each_other_and_are_checked() -> None:
    base = as_recipe("trellis-3bit")
    first = also(base, ["vae=uniform:bits=4"])
    again = also(first, ["vae=uniform:bits=3", "text_encoder=trellis:bits=4"])
    assert again.name == "trellis-3bit-also-text_encoder-vae"
    assert also(base, []) is base
    assert [part.pattern for part in again.components] == ["text_encoder", "vae"]
    assert again.components[1].rules[-1].params.to_json()["bits"] == 3
    for wish, what in (
        ("vae", "is not"), ("=int8", "is not"), ("vae=quantum", "unknown method"),
        ("vae=uniform:bots=4", "unknown setting"), ("vae=gptq", "needs calibration"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=what):
            also(base, [wish])
