"""Seeded damage: bytes flipped, cut, doubled and swapped; JSON values replaced by odd ones."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Iterator
from typing import Any

ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    10**30,
    10**400,
    -(10**18),
    2**63,
    1e308,
    -0.0,
    float("nan"),
    float("inf"),
    "",
    "*",
    "../../../../etc/passwd",
    "/etc/passwd",
    "a\x00b",
    "\ud800",
    "x" * 5000,
    "<script>alert(1)</script>",
    "=HYPERLINK(1)",
    [],
    {},
    [[]],
    [{}],
    {"a": {}},
    ["demo"] * 300,
    {"bits": 3},
    "[" * 300,
    0.5,
    "3",
)
TOKENS = (
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"null",
    b"NaN",
    b"Infinity",
    b"1e999",
    b"-1",
    b"{}",
    b"[]",
    b"[" * 2000,
    b'{"a":' * 2000,
    b'"',
    b"\\ud800",
    b"\r\n",
    b"9" * 5000,
    b"../",
    b"\x89PNG",
    b"PK\x03\x04",
    b"\xc0\x80",
    b"=cmd|x",
    b"\x1b[2J",
    b"\xe2\x80\xae",
)


SEED = os.environ.get("VQDQ_CHAOS_SEED", "")
"""Empty in the suite, which attacks with the same damage each time; `make chaos` tries others."""


def chances(name: str, count: int) -> Iterator[tuple[str, random.Random]]:
    """Yields what an attack is called, and its source of chance; the same for the same seed."""
    for number in range(count):
        case = f"{name} {number}{SEED and f' of {SEED}'}"
        yield case, random.Random(case)


def bytes_of(chance: random.Random, whole: bytes) -> bytes:
    """Returns damaged bytes."""
    data = bytearray(whole)
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(7):
            case 0 if data:
                data[min(at, len(data) - 1)] ^= 1 << chance.randrange(8)
            case 1:
                del data[at : at + chance.choice((1, 4, 64, 4096))]
            case 2:
                data[at:at] = chance.choice(TOKENS)
            case 3:
                del data[at:]
            case 4:
                data[at:at] = data[at : at + chance.randrange(256)]
            case 5:
                data[at : at + 4] = chance.randbytes(4)
            case _:
                token = chance.choice(TOKENS)
                data[at : at + len(token)] = token
    return bytes(data)


def json_of(chance: random.Random, whole: Any) -> Any:
    """Returns a copy of JSON values with some of them odd, missing or renamed."""
    made = copy.deepcopy(whole)
    for _ in range(chance.randint(1, 3)):
        holder, key = chance.choice(_places(made))
        match chance.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[chance.choice(("extra", "version", "__class__", ""))] = holder.pop(key)
            case 2 if isinstance(holder, list):
                holder.extend(holder[:50])
            case _:
                holder[key] = copy.deepcopy(chance.choice(ODD))
        if not _places(made):
            break
    return made


def text_of(chance: random.Random, whole: Any) -> bytes:
    """Returns JSON text with odd values, or with damaged bytes."""
    if chance.random() < 0.3:
        return bytes_of(chance, json.dumps(whole).encode())
    return json.dumps(json_of(chance, whole)).encode("utf-8", "surrogatepass")


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    left = [value]
    while left:
        now = left.pop()
        entries = now.items() if isinstance(now, dict) else enumerate(now)
        for key, inner in entries:
            found.append((now, key))
            if isinstance(inner, dict | list):
                left.append(inner)
    return found
