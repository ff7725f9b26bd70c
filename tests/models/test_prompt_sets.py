"""Prompt files as published, damaged ones, built-in sets, and even sampling."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqdq.demo import scenes
from vqdq.demo.evaluate import evaluation_scenes
from vqdq.errors import UserError
from vqdq.models.prompt_sets import (
    Prompt,
    PromptSet,
    built_in_names,
    built_in_set,
    read_prompt_set,
    sample,
)

PARTI = (
    "Prompt\tCategory\tChallenge\tNote\n"
    "a lantern\tArtifacts\tBasic\tours, in their format\n"
    '"N O O N" in chalk on a slate\tIllustrations\tWriting & Symbols\t\n'
    'a jar with the words "PLUM JAM" on it\tFood & Beverage\tWriting & Symbols\t\n'
    "an owl, a fox, and a hare \tAnimals\tQuantity\t\n"
)
COCO = {
    "info": {"year": 2017},
    "images": [{"id": 7, "file_name": "7.jpg"}],
    "licenses": [],
    "annotations": [
        {"image_id": 7, "id": 1, "caption": "A dog on a sofa. "},
        {"image_id": 7, "id": 2, "caption": "A sofa with a dog."},
        {"image_id": 9, "id": 3, "caption": "Two cups\nof tea."},
    ],
}


@pytest.fixture
def write(tmp_path):
    def made(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return made


def texts(found):
    return [prompt.text for prompt in found.prompts]


def test_partiprompts_open_as_published(write):
    found = read_prompt_set(write("PartiPrompts.tsv", PARTI))
    assert texts(found) == [
        "a lantern",
        '"N O O N" in chalk on a slate',  # the marks are text: a CSV reader would eat them
        'a jar with the words "PLUM JAM" on it',
        "an owl, a fox, and a hare",
    ]
    assert found.prompts[1].category == "Illustrations"
    assert found.counts("challenge") == {"Basic": 1, "Quantity": 1, "Writing & Symbols": 2}
    assert (found.name, found.note) == ("PartiPrompts.tsv", "")


def test_coco_captions_open_as_published(write):
    found = read_prompt_set(write("captions_val2017.json", json.dumps(COCO)))
    assert texts(found) == ["A dog on a sofa.", "Two cups of tea."]
    assert found.note == "Of 3 captions the first of each of 2 pictures was taken."


def test_text_with_any_line_ends(write):
    for ends in ("\n", "\r\n", "\r"):
        content = ends.join(["a red circle", "", "  a blue  ring ", "a red circle"])
        found = read_prompt_set(write("mine.txt", content))
        assert texts(found) == ["a red circle", "a blue ring"]
        assert found.note == "1 repetition was left out."
    assert texts(read_prompt_set(write("bom.txt", b"\xef\xbb\xbfein Haus"))) == ["ein Haus"]


def test_csv_with_quotes_and_columns_in_any_order(write):
    content = 'Category,ID,Caption\r\nart,1,"a ""big"" house, red"\r\n,2,"two\nlines"\r\n\r\n'
    found = read_prompt_set(write("mine.csv", content))
    assert texts(found) == ['a "big" house, red', "two lines"]
    assert found.counts("category") == {"": 1, "art": 1}


@pytest.mark.parametrize(
    "values",
    [
        ["a", "b"],
        {"prompts": ["a", "b"]},
        [{"prompt": "a", "category": None}, {"Text": "b"}],
        {"prompts": [{"caption": "a"}, "b"]},
    ],
)
def test_json_lists(write, values):
    assert texts(read_prompt_set(write("mine.json", json.dumps(values)))) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "what", "where"),
    [
        ("a.txt", "", "holds no prompt", ""),
        ("a.txt", " \n\n", "holds no prompt", ""),
        ("a.csv", "prompt\n", "holds no prompt", ""),
        ("a.tsv", "", "no column called prompt, caption or text", ""),
        ("a.csv", "a red circle\na blue ring\n", "no column called", ""),
        ("a.json", "", "damaged: Expecting value", "line 1"),
        ("a.json", "[]", "holds no prompt", ""),
        ("a.json", '["a",\n"b"', "damaged", "line 2"),
        ("a.json", '{"images": []}', "neither COCO captions nor a list", ""),
        ("a.json", "3", "neither COCO", ""),
        ("a.json", '["a", 7]', "is not a prompt", "entry 2"),
        ("a.json", '[{"words": "a"}]', "is not a prompt", "entry 1"),
        ("a.json", '["\\ud800"]', "half a character", "entry 1"),
        ("a.json", "[" * 200_000, "no list of prompts", ""),
        ("a.json", "[" + "9" * 5000 + "]", "no list of prompts", ""),
        ("a.json", '{"annotations": [{"image_id": 1, "keypoints": []}]}', "not a COCO caption",
         "annotation 1"),
        ("a.json", '{"annotations": {}}', "not a COCO caption", "annotation 1"),
        ("a.tsv", PARTI + "short\tArts\n", "has 2 columns where the first line has 4", "line 6"),
        ("a.tsv", PARTI + "\tArts\tBasic\t\n", "the prompt is empty", "line 6"),
        ("a.csv", 'prompt\n"open', "damaged: unexpected end of data", "line 2"),
        ("a.csv", "prompt\n" + "x" * 200_000, "damaged: field larger than", "line 2"),
        ("a.txt", "ok\n" + "x" * 10_000, "the prompt has 10,000 characters", "line 2"),
        ("a.json", json.dumps(["x" * 10_000]), "10,000 characters", "entry 1"),
        ("a.tsv", "Prompt\n" + "x" * 10_000, "10,000 characters", "line 2"),
        ("a.txt", "ein\nHäuschen".encode("latin-1"), "not UTF-8 text (line 2)", ""),
        ("a.txt", "ein Haus".encode("utf-16"), "is UTF-16 text", ""),
        ("a.tsv", b"Prompt\na\x00b\n", "zero byte in line 2", ""),
        ("a.json", b"\x89PNG\r\n\x1a\n\xff", "not UTF-8", ""),
        ("a.parquet", b"PAR1", 'end in ".parquet" are not read', ""),
        ("prompts", "a", 'end in "" are not read', ""),
    ],
)  # fmt: skip
def test_faults_name_their_place(write, name, content, what, where):
    path = write(name, content)
    with pytest.raises(UserError) as caught:
        read_prompt_set(path)
    assert what in caught.value.what
    assert str(path) in caught.value.where
    assert caught.value.where.endswith(where)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_prompt_set(tmp_path / "absent.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_prompt_set(tmp_path / "folder.txt")


@given(content=st.binary(max_size=200), ending=st.sampled_from([".txt", ".csv", ".tsv", ".json"]))
@settings(max_examples=150)
def test_any_bytes_are_prompts_or_a_plain_message(tmp_path_factory, content, ending):
    path = tmp_path_factory.getbasetemp() / f"any{ending}"
    path.write_bytes(content)
    try:
        found = read_prompt_set(path)
    except UserError:
        return
    assert all(prompt.text.strip() for prompt in found.prompts)
    assert len(found.digest) == 64


def test_the_demo_sets_are_in_its_world():
    examples = built_in_set("demo examples")
    assert texts(examples) == list(scenes.EXAMPLE_PROMPTS)
    evaluation = built_in_set("demo evaluation")
    wanted = [scenes.caption(scene) for scene in evaluation_scenes(500)]
    assert texts(evaluation) == list(dict.fromkeys(wanted))
    assert evaluation.note == f"{500 - len(evaluation.prompts)} repetitions were left out."
    for prompt in evaluation.prompts:
        assert scenes.split_of(scenes.parse(prompt.text)) == prompt.category
    assert set(evaluation.counts("category")) == {"held-out", "unseen"}
    assert set(evaluation.counts("challenge")) == {"one object", "two objects"}


def test_built_in_names():
    assert built_in_names() == ("demo examples", "demo evaluation", "pictures")
    assert len(built_in_set("pictures").prompts) == 22 * 12
    with pytest.raises(UserError, match="no prompt set") as caught:
        built_in_set("demo evaluations")
    assert caught.value.remedy == 'Did you mean "demo evaluation"?'


def labelled():
    sizes = {"Animals": 30, "Arts": 5, "People": 12}
    return PromptSet(
        name="labelled",
        prompts=tuple(
            Prompt(text=f"{name} {i}", category=name) for name, n in sizes.items() for i in range(n)
        ),
    )


def test_sampling_is_even_until_a_category_is_used_up():
    found = sample(labelled(), 12, seed=3, by="category")
    assert Counter(p.category for p in found) == {"Animals": 4, "Arts": 4, "People": 4}
    found = sample(labelled(), 30, seed=3, by="category")
    counts = Counter(p.category for p in found)
    assert counts["Arts"] == 5
    assert sorted(counts.values()) == [5, 12, 13]
    assert len(set(sample(labelled(), 47, seed=3, by="category"))) == 47


@pytest.mark.parametrize("by", [None, "category"])
def test_sampling_repeats_and_a_smaller_sample_is_a_beginning(by):
    whole = sample(labelled(), 47, seed=1, by=by)
    for count in (1, 10, 46):
        assert sample(labelled(), count, seed=1, by=by) == whole[:count]
    assert sample(labelled(), 47, seed=2, by=by) != whole
    assert set(whole) == set(labelled().prompts)


def test_what_cannot_be_sampled():
    for count in (0, 48):
        with pytest.raises(UserError, match="there are 47"):
            sample(labelled(), count, seed=0)
    with pytest.raises(UserError, match="have no challenge"):
        sample(labelled(), 3, seed=0, by="challenge")


def test_the_digest_is_of_the_texts():
    first = labelled()
    assert first.digest == PromptSet(name="other", prompts=first.prompts).digest
    assert first.digest != PromptSet(name="labelled", prompts=first.prompts[::-1]).digest
