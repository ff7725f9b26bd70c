"""Sets of prompts to compare models on: built-in ones, and files as other people publish them.

PartiPrompts' TSV and COCO's captions JSON open as they are. A fault in a file is said with its
line, and a set never becomes shorter without saying so (`PromptSet.note`).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch

from vqdq.errors import UserError
from vqdq.models.prompts import built_in
from vqdq.params import is_text, nearest
from vqdq.places import expanded

MAX_FILE_BYTES = 200_000_000  # COCO's training captions are 92 MB
MAX_CHARACTERS = 4_000
"""Of one prompt. The longest text encoders read 512 tokens, which is about 2,500 characters."""

Label = Literal["category", "challenge"]

_TEXT_NAMES = ("prompt", "caption", "text")
_EVALUATION_SCENES = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """One prompt; `category` and `challenge` as its set labels it, or empty."""

    text: str
    category: str = ""
    challenge: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptSet:
    """Different prompts in the order of their source.

    Attributes:
        name: of the built-in set, or of the file.
        prompts: no text twice.
        note: what was left out, in words; empty when nothing was.
    """

    name: str
    prompts: tuple[Prompt, ...]
    note: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of the texts, for the record of a run."""
        return hashlib.sha256("\0".join(p.text for p in self.prompts).encode()).hexdigest()

    def counts(self, label: Label) -> dict[str, int]:
        """Returns how many prompts carry each value of a label, sorted by value."""
        found: dict[str, int] = {}
        for prompt in self.prompts:
            value = _value(prompt, label)
            found[value] = found.get(value, 0) + 1
        return dict(sorted(found.items()))


def built_in_set(name: str) -> PromptSet:
    """Returns a built-in set.

    Args:
        name: for the demo model "demo examples" (eight, shown on the page) and "demo evaluation"
            (the captions of `vqdq.demo.evaluate`, by what is new in them and by how many objects);
            for any other model "pictures" (22 subjects in 12 styles).

    Raises:
        UserError: no such set.
    """
    if name not in _BUILT_IN:
        raise UserError(
            f'there is no prompt set "{name}".',
            where="prompts",
            remedy=nearest(name, _BUILT_IN, "prompt set"),
        )
    return _unique(name, _BUILT_IN[name]())


def built_in_names() -> tuple[str, ...]:
    """Returns the names that `built_in_set` knows."""
    return tuple(_BUILT_IN)


def read_prompt_set(path: str | Path) -> PromptSet:
    """Returns the prompts of a UTF-8 file, its kind told by its ending.

    * `.txt`: a prompt a line.
    * `.tsv`: columns as named in the first line; quotation marks are text (PartiPrompts has a
      prompt that begins with one). `.csv`: the same with commas and quoted fields. A column must
      be called prompt, caption or text; category and challenge are read where they are.
    * `.json`: COCO captions (of each picture the first caption); a list of texts or of objects with
      the names above; or an object whose "prompts" is such a list.

    Raises:
        UserError: unknown ending, no such file, too large, not UTF-8, damaged, without prompts, or
            a prompt of more than 4,000 characters; the line is named where there is one.
    """
    file = expanded(path)
    readers: Mapping[str, Callable[[str, str], tuple[list[Prompt], str]]] = {
        ".txt": _read_lines, ".csv": _read_csv, ".tsv": _read_tsv, ".json": _read_json,
    }  # fmt: skip
    reader = readers.get(file.suffix.lower())
    where = str(file)
    if reader is None:
        raise UserError(
            f'files that end in "{file.suffix}" are not read.',
            where=where,
            remedy=f"Use one of: {', '.join(readers)}.",
        )
    prompts, note = reader(_content(file), where)
    if not prompts:
        raise UserError("holds no prompt.", where=where, remedy="Write one prompt a line.")
    found = _unique(file.name, prompts)
    return replace(found, note=" ".join(part for part in (note, found.note) if part))


def sample(
    prompts: PromptSet, count: int, *, seed: int, by: Label | None = None
) -> tuple[Prompt, ...]:
    """Returns `count` prompts of a set; a smaller count with the same seed is a beginning of it.

    Args:
        prompts: the set.
        count: how many.
        seed: the same seed gives the same prompts.
        by: spread them evenly over the values of this label (each value in turn, until it is used
            up); None draws from the whole set.

    Raises:
        UserError: fewer than `count` prompts, or the set does not carry the label.
    """
    total = len(prompts.prompts)
    if not 1 <= count <= total:
        raise UserError(
            f"{count} prompts were asked for, and there are {total}.",
            where=prompts.name,
            remedy=f"Use 1 to {total}.",
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(total, generator=generator).tolist()
    shuffled = [prompts.prompts[index] for index in order]
    if by is None:
        return tuple(shuffled[:count])
    groups: dict[str, list[Prompt]] = {value: [] for value in prompts.counts(by)}
    if list(groups) == [""]:
        raise UserError(
            f"its prompts have no {by}.", where=prompts.name, remedy="Draw from the whole set."
        )
    for prompt in shuffled:
        groups[_value(prompt, by)].append(prompt)
    names = list(groups)
    turn = [names[i] for i in torch.randperm(len(names), generator=generator).tolist()]
    found: list[Prompt] = []
    for place in range(max(len(group) for group in groups.values())):
        found += [groups[name][place] for name in turn if place < len(groups[name])]
    return tuple(found[:count])


def _content(file: Path) -> str:
    where = str(file)
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise UserError(
                "is larger than 200 MB.", where=where, remedy="Take a part of the prompts."
            )
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}.", where=where) from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError("is UTF-16 text.", where=where, remedy="Save it as UTF-8.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"is not UTF-8 text (line {line}).", where=where, remedy="Save it as UTF-8."
        ) from error
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(
            f"is not a text (a zero byte in line {line}).", where=where, remedy="Is it damaged?"
        )
    return text


def _read_lines(text: str, where: str) -> tuple[list[Prompt], str]:
    rows = enumerate(io.StringIO(text, newline=None), start=1)
    return [_prompt(line, f"{where}, line {at}") for at, line in rows if line.strip()], ""


def _read_csv(text: str, where: str) -> tuple[list[Prompt], str]:
    return _read_table(csv.reader(io.StringIO(text, newline=""), strict=True), where)


def _read_tsv(text: str, where: str) -> tuple[list[Prompt], str]:
    file = io.StringIO(text, newline="")
    return _read_table(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), where)


def _read_table(rows: Any, where: str) -> tuple[list[Prompt], str]:
    """`rows` is a csv.reader; its `line_num` names the place of a fault."""
    try:
        header = [name.strip().lower() for name in next(rows, [])]
        column = next((header.index(name) for name in _TEXT_NAMES if name in header), None)
        if column is None:
            raise UserError(
                f"has no column called {', '.join(_TEXT_NAMES[:-1])} or {_TEXT_NAMES[-1]}.",
                where=where,
                remedy="Name the columns in the first line.",
            )
        labels = {name: header.index(name) for name in ("category", "challenge") if name in header}
        found: list[Prompt] = []
        for row in rows:
            cells = cast("list[str]", row)
            if not any(cell.strip() for cell in cells):
                continue
            place = f"{where}, line {rows.line_num}"
            if len(cells) != len(header):
                raise UserError(
                    f"has {len(cells)} columns where the first line has {len(header)}.",
                    where=place,
                    remedy="Correct that line.",
                )
            marks = {name: cells[at].strip() for name, at in labels.items()}
            found.append(_prompt(cells[column], place, **marks))
    except csv.Error as error:
        raise UserError(
            f"is damaged: {error}.", where=f"{where}, line {rows.line_num}", remedy="Correct it."
        ) from error
    return found, ""


def _read_json(text: str, where: str) -> tuple[list[Prompt], str]:
    try:
        values: object = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"is damaged: {error.msg}.", where=f"{where}, line {error.lineno}", remedy="Correct it."
        ) from error
    except (RecursionError, ValueError) as error:  # nested too deeply, a number too long
        raise UserError("is no list of prompts.", where=where) from error
    note = ""
    if isinstance(values, dict):
        table = cast("dict[str, Any]", values)
        if "annotations" in table:
            values, note = _coco(table["annotations"], where)
        else:
            values = table.get("prompts")
    if not isinstance(values, list):
        raise UserError(
            "holds neither COCO captions nor a list of prompts.",
            where=where,
            remedy='Write ["a red circle", …], or {"prompts": [{"prompt": "…", "category": "…"}]}.',
        )
    entries = enumerate(cast("list[object]", values), start=1)
    return [_entry(value, f"{where}, entry {at}") for at, value in entries], note


def _entry(value: object, where: str) -> Prompt:
    if isinstance(value, str):
        return _prompt(value, where)
    if isinstance(value, dict):
        table = {str(k).lower(): v for k, v in cast("dict[object, object]", value).items()}
        text = next((table[name] for name in _TEXT_NAMES if name in table), None)
        if isinstance(text, str):
            marks = {name: str(table.get(name) or "") for name in ("category", "challenge")}
            return _prompt(text, where, **marks)
    raise UserError(
        "is not a prompt.",
        where=where,
        remedy=f"Write a text, or an object with {', '.join(_TEXT_NAMES)}.",
    )


def _coco(annotations: object, where: str) -> tuple[list[object], str]:
    """The first caption of each picture; five captions of one picture are not five prompts."""
    first: dict[object, object] = {}
    rows = cast("list[object]", annotations) if isinstance(annotations, list) else [None]
    for at, row in enumerate(rows, start=1):
        table = cast("dict[str, object]", row) if isinstance(row, dict) else {}
        picture, caption = table.get("image_id"), table.get("caption")
        if not isinstance(picture, int | str) or not isinstance(caption, str):
            raise UserError(
                "is not a COCO caption.",
                where=f"{where}, annotation {at}",
                remedy="Use captions_….json; the files of instances and persons hold no captions.",
            )
        first.setdefault(picture, caption)
    note = f"Of {len(rows)} captions the first of each of {len(first)} pictures was taken."
    return list(first.values()), note if len(first) < len(rows) else ""


def _prompt(text: str, where: str, category: str = "", challenge: str = "") -> Prompt:
    words = " ".join(text.split())
    if not words:
        raise UserError("the prompt is empty.", where=where, remedy="Write one, or remove it.")
    if not is_text(words):
        raise UserError("the prompt holds half a character.", where=where, remedy="Correct it.")
    if len(words) > MAX_CHARACTERS:
        raise UserError(
            f"the prompt has {len(words):,} characters.",
            where=where,
            remedy=f"Use at most {MAX_CHARACTERS:,}.",
        )
    return Prompt(text=words, category=category, challenge=challenge)


def _unique(name: str, prompts: Sequence[Prompt]) -> PromptSet:
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        first.setdefault(prompt.text, prompt)
    again = len(prompts) - len(first)
    note = f"{again} {'repetition was' if again == 1 else 'repetitions were'} left out."
    return PromptSet(name=name, prompts=tuple(first.values()), note=note if again else "")


def _value(prompt: Prompt, label: Label) -> str:
    return prompt.category if label == "category" else prompt.challenge


def _demo_examples() -> list[Prompt]:
    from vqdq.demo.scenes import EXAMPLE_PROMPTS

    return [_scene_prompt(text) for text in EXAMPLE_PROMPTS]


def _demo_evaluation() -> list[Prompt]:
    from vqdq.demo.evaluate import evaluation_scenes  # imports diffusers
    from vqdq.demo.scenes import caption

    return [_scene_prompt(caption(scene)) for scene in evaluation_scenes(_EVALUATION_SCENES)]


def _scene_prompt(text: str) -> Prompt:
    from vqdq.demo.scenes import parse, split_of

    scene = parse(text)
    count = "one object" if len(scene.objects) == 1 else "two objects"
    return Prompt(text=text, category=split_of(scene), challenge=count)


def _pictures() -> list[Prompt]:
    return [Prompt(text=text) for text in built_in()]


_BUILT_IN: Mapping[str, Callable[[], list[Prompt]]] = {
    "demo examples": _demo_examples,
    "demo evaluation": _demo_evaluation,
    "pictures": _pictures,
}
