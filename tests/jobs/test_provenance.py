"""A picture from anywhere: read back whole, or refused in words, and never more than that."""

from __future__ import annotations

import json
import random
import struct
import zlib

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vqdq.errors import UserError
from vqdq.jobs import provenance
from vqdq.jobs.draw import CHUNK, save_png
from vqdq.recipe import Recipe
from vqdq.rules import Rule

RECIPE = Recipe(name="toy", rules=(Rule(pattern="*", method="uniform"),))
RECIPE = Recipe.from_json(RECIPE.to_json())  # settings at their defaults are written out
TOLD = {
    "model": "small",
    "base": "demo",
    "recipe": "toy",
    "compression": RECIPE.to_json(),
    "prompt": "a “red” ring 🐈",
    "seed": 2**40,
    "steps": 12,
    "guidance": 2.5,
    "versions": {"torch": "2.9"},
}
PIXELS = Image.linear_gradient("L").resize((48, 32))


def chunk(kind: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png(*chunks: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def told(**changes) -> bytes:
    text = json.dumps(TOLD | changes)
    return png(chunk(b"tEXt", CHUNK.encode() + b"\0" + text.encode("latin-1")))


def test_what_was_saved_is_read_back(tmp_path):
    path = tmp_path / "a.png"
    save_png(path, PIXELS, TOLD)
    found = provenance.read(path)
    assert (found.model, found.base, found.recipe_name) == ("small", "demo", "toy")
    assert (found.prompt, found.seed) == (TOLD["prompt"], 2**40)
    assert (found.steps, found.guidance, found.digest) == (12, 2.5, RECIPE.digest)
    assert found.recipe == RECIPE
    assert found.versions == (("torch", "2.9"),)
    plain = {key: TOLD[key] for key in ("model", "prompt", "seed", "steps", "guidance")}
    save_png(path, PIXELS, plain | {"recipe": None})  # as the first version wrote it
    assert provenance.read(path).recipe is None


BOMB = zlib.compress(bytes(50_000_000), 9)
REFUSED = (
    (b"GIF89a", "is not a PNG"),
    (b"", "is not a PNG"),
    (b"\x89PNG\r\n\x1a\n", "damaged"),
    (png(), "carries no recipe"),
    (png(chunk(b"tEXt", b"Software\0other")), "carries no recipe"),
    (png(chunk(b"tEXt", b"vqdq\0{")), "cannot be read"),
    (png(chunk(b"tEXt", b"vqdq\0[]")), "cannot be read"),
    (png(chunk(b"tEXt", b'vqdq\0{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}")), "cannot be read"),
    (png(chunk(b"tEXt", b'vqdq\0{"seed":' + b"9" * 10**5 + b"}")), "cannot be read"),
    (png(chunk(b"tEXt", b"vqdq\0" + bytes(10**6))), "too long"),
    (png(chunk(b"zTXt", b"vqdq\0\0" + BOMB)), "packed"),
    (png(chunk(b"iTXt", b"vqdq\0\1\0\0\0" + BOMB)), "packed"),
    (png(chunk(b"iTXt", b"vqdq\0\0\0")), "damaged"),
    (told()[:-40], "damaged"),
    (told().replace(b"small", b"smelt"), "damaged"),  # the checksum does not fit
    (told(seed=-1), "out of range"),
    (told(steps="many"), "not a whole number"),
    (told(prompt=" "), "prompt is empty"),
    (told(compression=[1]), "no recipe"),
    (told(compression={"rules": 7}), "cannot be drawn"),
)


@pytest.mark.parametrize(("content", "words"), REFUSED)
def test_what_cannot_be_used_is_refused_in_words(tmp_path, content, words):
    path = tmp_path / "given.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        provenance.read(path)
    assert caught.value.where == "given.png"
    assert caught.value.remedy


def test_a_file_beyond_every_picture_is_not_even_opened_far(tmp_path):
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(provenance.MAX_FILE_BYTES + 1)
    with pytest.raises(UserError, match="has 64 MB"):
        provenance.read(path)
    with pytest.raises(UserError, match="cannot be read"):
        provenance.read(tmp_path / "absent.png")


def test_two_hundred_damaged_files_end_in_words_or_in_values(tmp_path):
    """Bits flipped, bytes dropped, doubled or torn off anywhere, checksums mended or not."""
    info = PngInfo()
    info.add_itxt(CHUNK, json.dumps(TOLD), "", "")
    path = tmp_path / "b.png"
    PIXELS.save(path, pnginfo=info)
    whole = [path.read_bytes(), told()]
    assert provenance.read(path).prompt == TOLD["prompt"]
    draw = random.Random(20)
    ends = {"read": 0, "refused": 0}
    for number in range(200):
        content = bytearray(whole[number % 2])
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(content))
            match draw.randrange(4):
                case 0:
                    content[at] ^= 1 << draw.randrange(8)
                case 1:
                    del content[at : at + draw.randint(1, 30)]
                case 2:
                    content[at:at] = content[at : at + draw.randint(1, 300)]
                case _:
                    content[at] = draw.choice(b'{}[]":,\\0-e9\0\xff')
        if number % 4 > 1:  # as if somebody had written it so: the text is changed, the sum fits
            start = whole[1].index(b"vqdq\0") + 5
            text = bytearray(json.dumps(TOLD).encode())
            for _ in range(3):
                text[draw.randrange(len(text))] = draw.choice(b'{}[]":,\\0-e9 tfn\0\xff')
            content = bytearray(png(chunk(b"tEXt", whole[1][start - 5 : start] + bytes(text))))
        path.write_bytes(content)
        try:
            provenance.read(path)
            ends["read"] += 1
        except UserError:
            ends["refused"] += 1
    assert sum(ends.values()) == 200
    assert min(ends.values()) > 5
