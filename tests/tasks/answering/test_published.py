"""LLaVA's conversations: examples, image paths, and rejected files."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from das_gym.data.images import ImageFile
from das_gym.tasks.answering.examples import AnswerExample
from das_gym.tasks.answering.reading import load_answers
from tests.tasks.answering.making import assert_disjoint, chat, draw, entry, llava_folder, parts_of, write, write_lines


@pytest.fixture
def root(tmp_path) -> Path:
    return llava_folder(tmp_path / "mine", train=6, val=3, test=2)


def change(path: Path, index: int, **changes: Any) -> Path:
    """Change fields of an entry; None takes one out."""
    entries = json.loads(path.read_text())
    entries[index] = {key: value for key, value in (entries[index] | changes).items() if value is not None}
    return write(path, entries)


def test_entry_becomes_an_example(root):
    change(root / "test.json", 0, answer_type=" CLOSED ")
    splits = load_answers(root)
    assert splits.test[0] == AnswerExample(
        key="test.json/9",
        images=(ImageFile(root / "images" / "9.png"),),
        question="<image>\nWhat is it?",
        answer="thing 9",
        kind="CLOSED",
    )
    assert [len(part) for part in parts_of(splits).values()] == [6, 3, 2]
    assert splits.left_out == ()
    assert_disjoint(splits)


def test_answered_rounds_become_examples_with_their_history(root):
    texts = ("<image>\nWhat is it? ", " A dog. ", "And <image> this?", "A cat.", "Both?", "No.", "Why?")
    draw(root / "images" / "a.png", root / "images" / "b.png")
    write(root / "test.json", [entry(50, *texts, image=["a.png", "b.png"])])
    first, second, third = load_answers(root).test
    a, b = (ImageFile(root / "images" / name) for name in ("a.png", "b.png"))
    assert (first.key, first.images, first.rounds) == ("test.json/50#1", (a,), ())
    assert (first.question, first.answer) == ("<image>\nWhat is it?", "A dog.")
    assert (second.images, second.rounds) == ((a, b), (("<image>\nWhat is it?", "A dog."),))
    assert (third.key, third.question, third.answer) == ("test.json/50#3", "Both?", "No.")
    assert third.images == (a, b)
    assert third.rounds == (("<image>\nWhat is it?", "A dog."), ("And <image> this?", "A cat."))


def test_missing_or_duplicate_ids_are_replaced_by_position(root):
    entries = [entry("a"), entry("a", "<image>\nWhose is it?", "mine"), entry(77), entry("x#1"), entry("y")]
    del entries[4]["id"]
    draw(*(root / "images" / f"{name}.png" for name in ("a", "77", "x#1", "y")))
    write(root / "test.json", [dict(e, id=77) if e.get("id") == "77" else e for e in entries])
    (root / "train.json").unlink()
    keys = [example.key for example in load_answers(root).test]
    assert keys == ["test.json: [0]", "test.json: [1]", "test.json/77", "test.json: [3]", "test.json: [4]"]


@pytest.mark.parametrize("folder", ["", "imgs", "data/Mine", "../images"])
def test_images_are_found(tmp_path, folder):
    root = llava_folder(tmp_path / "mine", images=folder, train=4)
    assert_disjoint(load_answers(root))


def test_reference_folder_and_file_names(tmp_path):
    """Slake and AID as LLaVA-DAS has them: two files, and one of questions alone."""
    root = tmp_path / "slake"
    texts = ("<image>\nWhere is the liver?\nAnswer the question using a single word or phrase.", "Right")
    draw(*(root / "imgs" / f"xmlab{n}" / "source.jpg" for n in range(13)))
    entries = [entry(n, *texts, image=f"xmlab{n}/source.jpg", answer_type="OPEN") for n in range(13)]
    write(root / "train_llava_en.json", entries[:10])
    write(root / "testval_llava_en.json", entries[10:])
    questions = [{"question_id": e["id"], "image": e["image"], "text": texts[0]} for e in entries[10:]]
    write_lines(root / "testval_llava_en_new.json", questions)
    splits = load_answers(root)
    assert [len(part) for part in parts_of(splits).values()] == [9, 1, 3]
    assert splits.test[0].kind == "OPEN"
    assert_disjoint(splits)


def aid(root: Path) -> Path:
    """Two data sets of classes in a folder, as LLaVA-DAS has AID's."""
    names = [f"{folder}/{folder.lower()}_{n}.jpg" for n in range(8) for folder in ("Airport", "BareLand")]
    draw(*(root / "data" / "AID" / name for name in names))
    question = "<image>\nWhat is the label for this image?\nAnswer the question using a single word."
    entries = [entry(n, question, name.split("/")[0].lower(), image=name) for n, name in enumerate(names)]
    for share, count in ((20, 4), (50, 8)):
        write(root / f"train{share}.json", entries[:count])
        write(root / f"test{share}.json", entries[count:])
        write_lines(root / f"test{share}_qs.json", [{"question_id": 1, "image": names[0], "text": question}])
    return root


def test_file_name_selects_one_of_several_data_sets(tmp_path):
    root = aid(tmp_path / "aid")
    with pytest.raises(ValueError, match=r"aid holds 2 data sets: .*train20\.json \(LLaVA.*train50\.json .*`data_root`"):
        load_answers(root)
    for name in ("train20.json", "test20.json"):
        splits = load_answers(root / name)
        assert [len(part) for part in parts_of(splits).values()] == [3, 1, 12]
        assert_disjoint(splits)
    assert len(load_answers(root / "train50.json").test) == 8


def test_single_question_makes_its_answers_options(tmp_path):
    root = aid(tmp_path / "aid")
    assert {e.options for part in parts_of(load_answers(root / "train20.json")).values() for e in part} == {
        ("airport", "bareland")
    }
    change(root / "test20.json", 0, conversations=chat("<image>\nAnother question?", "airport"))
    assert {e.options for part in parts_of(load_answers(root / "train20.json")).values() for e in part} == {()}


BAD_ENTRIES: dict[str, tuple[dict[str, Any], str]] = {
    "no conversations": ({"conversations": None}, "no `conversations`"),
    "no answer": ({"conversations": chat("<image>\nWhat?")}, "no answer"),
    "gpt first": ({"conversations": chat("<image>", "b")[::-1]}, r"conversations\[0\].*`from`"),
    "no question": ({"conversations": chat("<image>\n", "b")}, "question in `value` is empty"),
    "half a character": ({"conversations": chat("<image>\n\ud83d", "b")}, r"\[0\]: `value` is not valid Unicode"),
    "no mark": ({"conversations": chat("What?", "b")}, "wrong number of images: got 1, expected one for each of 0"),
    "a mark in an answer": ({"conversations": chat("<image>\nWhat?", "<image>")}, r"conversations\[1\].*in an answer"),
    "a video": ({"video": "a.mp4"}, "`video`"),
    "one option": ({"options": ["thing 9"]}, "`options`"),
    "not among the options": ({"options": ["a", "b"]}, "the answer is not among the options"),
}


@pytest.mark.parametrize(("changes", "text"), BAD_ENTRIES.values(), ids=BAD_ENTRIES)
def test_bad_entry_is_named_or_skipped(root, changes, text):
    change(root / "test.json", 0, **changes)
    with pytest.raises(ValueError, match=text) as raised:
        load_answers(root)
    assert str(raised.value).startswith(f"{root / 'test.json'}: [0] (id 9)")
    assert str(raised.value).count("on_bad_example") == 2  # one hint, for Python and for a command line
    splits = load_answers(root, "skip")
    assert ([example.key for example in splits.test], len(splits.left_out)) == (["test.json/10"], 1)


def test_damaged_line_or_file_is_named(root):
    path = write_lines(root / "test.json", [entry(9), entry(10)])
    path.write_text(path.read_text() + '{"id": "11", "conv\n')
    with pytest.raises(ValueError, match=r"test\.json: line 3 is not valid JSON"):
        load_answers(root)
    assert len(load_answers(root, "skip").left_out) == 1
    (root / "train.json").write_bytes((root / "train.json").read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"train\.json is not valid JSON"):
        load_answers(root, "skip")


def test_files_that_share_an_image_are_made_disjoint(root):
    change(root / "train.json", 2, image="./9.png")
    change(root / "train.json", 4, image="10.png")
    with pytest.raises(ValueError, match=r"train\.json: \[2\] \(id 2\) shares an image .*9\.png is in .*test\.json: \[0\]"):
        load_answers(root)
    splits = load_answers(root, "skip")
    assert_disjoint(splits)
    assert [example.key for example in splits.train] == ["train.json/0", "train.json/1", "train.json/3", "train.json/5"]
    assert len(splits.left_out) == 2
    shutil.copy(root / "images" / "9.png", root / "images" / "0.png")
    with pytest.raises(ValueError, match=r"train\.json: \[0\] \(id 0\) shares an image .*0\.png, whose content is .*9\.png"):
        load_answers(root)
    shutil.copy(root / "test.json", root / "train.json")
    with pytest.raises(ValueError, match=r"train\.json holds no usable example"):
        load_answers(root, "skip")


def test_docs_example_is_read(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    block, _ = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    root = llava_folder(tmp_path / "data", train=9)
    (root / "test.json").write_text(block, encoding="utf-8")
    draw(*(root / "images" / f"000{n}.jpg" for n in (1, 2, 3)))
    first, second, third = load_answers(root).test
    assert (first.answer, first.kind, len(first.images)) == ("Beagle", "OPEN", 1)
    assert (second.answer, len(second.images)) == ("No", 2)
    assert (third.question, third.answer, len(third.images)) == ("Which is the larger one?", "The second", 2)
    assert third.rounds == (("<image><image>\nAre these of one breed?", "No"),)
