"""The reader of VQAv2's format: right on a small data set of other people's, clear on a damaged one."""

from __future__ import annotations

import functools
import io
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from das_gym.data.cache import CACHE_VARIABLE
from das_gym.data.images import ImageFile
from das_gym.data.splits import Splits
from das_gym.shapes.vqa import write_shapes
from das_gym.tasks.vqa import vqav2_cache
from das_gym.tasks.vqa.examples import VQAExample
from das_gym.tasks.vqa.task import VQATask
from das_gym.tasks.vqa.vqav2 import (
    answer_vocabulary,
    in_reward_split,
    load_vqav2,
    read_vqav2,
    splits_vocabulary,
)

TRAIN_QUESTIONS = "v2_OpenEnded_mscoco_train2014_questions.json"
TRAIN_ANNOTATIONS = "v2_mscoco_train2014_annotations.json"
VAL_QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
VAL_ANNOTATIONS = "v2_mscoco_val2014_annotations.json"


@functools.cache
def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, format="JPEG")
    return buffer.getvalue()


def entry_pair(image_id: int, number: int, question: str, answers: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    question_id = image_id * 1000 + number
    listed = [{"answer": a, "answer_confidence": "maybe", "answer_id": n + 1} for n, a in enumerate(answers)]
    return {"image_id": image_id, "question": question, "question_id": question_id}, {
        "question_type": "what is the",
        "multiple_choice_answer": answers[0],
        "answers": listed,
        "image_id": image_id,
        "answer_type": "other",
        "question_id": question_id,
    }


def write_split(root: Path, split: str, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    questions, annotations = [q for q, _ in pairs], [a for _, a in pairs]
    (root / f"v2_OpenEnded_mscoco_{split}_questions.json").write_text(json.dumps({"info": {}, "questions": questions}))
    (root / f"v2_mscoco_{split}_annotations.json").write_text(json.dumps({"info": {}, "annotations": annotations[::-1]}))
    (root / split).mkdir()
    for image_id in {q["image_id"] for q in questions}:
        (root / split / f"COCO_{split}_{image_id:012d}.jpg").write_bytes(jpeg())


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another data set: its own words, twelve images in val2014 with a question each, annotations in another order."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    folder = tmp_path / "birds"
    folder.mkdir()
    train = [
        entry_pair(7, 0, "What is on the Table?", ["The Heron!"] * 6 + ["two herons"] * 4),
        entry_pair(7, 1, "Is it grey?", ["Yes", "no"] * 5),
        entry_pair(9, 0, "How many?", ["two"] * 10),
    ]
    write_split(folder, "train2014", train)
    write_split(folder, "val2014", [entry_pair(100 + n, 0, f"Bird {n}?", ["owl", "crow"] * 5) for n in range(12)])
    return folder


@pytest.fixture
def kept_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder in which also what was read from small files is kept."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv(CACHE_VARIABLE, str(folder))
    monkeypatch.setattr(vqav2_cache, "CACHED_BYTES", 0)
    return folder


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    whole = json.loads(path.read_text())
    change(whole)
    path.write_text(json.dumps(whole))


def test_examples_in_the_order_of_the_questions(root: Path):
    heron, grey, number = read_vqav2(str(root), "train2014")
    assert heron == VQAExample(
        question_id=7000,
        image_id=7,
        image=ImageFile(root / "train2014" / "COCO_train2014_000000000007.jpg"),
        question="What is on the Table?",
        question_type="what is the",
        answer_type="other",
        answer="heron",
        answers=("heron",) * 6 + ("2 herons",) * 4,
        split="train2014",
    )
    assert heron.key == "train2014/7000"
    assert (grey.question_id, grey.answer, grey.answers) == (7001, "yes", ("yes", "no") * 5)
    assert (number.question_id, number.answer) == (9000, "2")
    assert grey.image == heron.image
    assert pickle.loads(pickle.dumps(heron)) == heron


def test_what_shapes_writes_is_read_back(tmp_path: Path):
    folder = write_shapes(tmp_path / "shapes", train_scenes=12, val_scenes=30)
    splits = load_vqav2(folder)
    assert {e.image_id for e in splits.train} == set(range(1, 13))
    examples = [*splits.train, *splits.reward, *splits.test]
    assert all(e.image.path.is_file() and e.answers == (e.answer,) * 10 for e in examples)


def test_the_halves_of_val2014_share_no_image_and_lose_none(root: Path):
    splits = load_vqav2(root)
    reward, test = {e.image_id for e in splits.reward}, {e.image_id for e in splits.test}
    assert not reward & test
    assert reward | test == set(range(100, 112))
    assert all(map(in_reward_split, reward))
    assert {e.question_id for e in splits.train} == {7000, 7001, 9000}


def test_the_halves_are_the_same_for_ever():
    assert "".join("rt"[not in_reward_split(image_id)] for image_id in range(32)) == "rttrtttttrttrrrrttrttrttrrrttrtr"
    assert [in_reward_split(image_id) for image_id in (42, 262148, 500_001, 581_929)] == [False, True, True, True]
    share = sum(map(in_reward_split, range(10_000))) / 10_000
    assert 0.48 < share < 0.52


def test_vqa_v1s_names_are_read_too(root: Path):
    for path in root.glob("v2_*"):
        path.rename(root / path.name.removeprefix("v2_"))
    assert len(read_vqav2(root, "train2014")) == 3
    (root / "v3_mscoco_train2014_annotations.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"several annotations files of train2014: mscoco_.*, v3_mscoco_.*; name one v2_mscoco_train"
    ):
        read_vqav2(root, "train2014")


def test_a_byte_order_mark_is_no_harm(root: Path):
    path = root / TRAIN_QUESTIONS
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_vqav2(root, "train2014")) == 3


def test_an_unknown_split_is_refused(root: Path):
    with pytest.raises(ValueError, match=r"split='dev' is none of train2014, val2014, test2015, test-dev2015"):
        read_vqav2(root, "dev")


def test_questions_without_answers_are_read_alone(root: Path):
    """VQA's test-dev: a part of test2015, whose images it shows; nothing else has to be there."""
    questions = [{"image_id": 5, "question": "How many?", "question_id": 50}]
    (root / "v2_OpenEnded_mscoco_test-dev2015_questions.json").write_text(json.dumps({"questions": questions}))
    (root / "test2015").mkdir()
    (root / "test2015" / "COCO_test2015_000000000005.jpg").write_bytes(jpeg())
    [example] = read_vqav2(root, "test-dev2015")
    assert (example.question, example.question_id, example.answers) == ("How many?", 50, ())
    assert example.image.path.name == "COCO_test2015_000000000005.jpg"
    assert not VQATask.is_labelled([example])
    assert VQATask.is_labelled(read_vqav2(root, "val2014"))


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg", ".tif"])
def test_images_may_have_any_of_the_usual_suffixes(root: Path, suffix: str):
    for path in (root / "val2014").iterdir():
        path.rename(path.with_suffix(suffix))
    assert {example.image.path.suffix for example in read_vqav2(root, "val2014")} == {suffix}


def test_images_of_one_folder_may_differ_in_their_suffixes(root: Path):
    first, second, *_ = sorted((root / "val2014").iterdir())
    first.rename(first.with_suffix(".PNG"))
    second.with_suffix(".png").write_bytes(second.read_bytes())
    suffixes = {example.image.path.stem: example.image.path.suffix for example in read_vqav2(root, "val2014")}
    assert suffixes[first.stem] == ".PNG"
    assert suffixes[second.stem] == second.suffix  # as most have it


def test_unanimous_answers_stay_as_written(root: Path):
    read = read_vqav2(root, "train2014")
    assert (read[2].answer, set(read[2].answers)) == ("2", {"two"})
    assert set(read[0].answers) == {"heron", "2 herons"}


def test_unanimous_answers_in_a_spelling_that_no_model_has_are_warned_of(root: Path):
    def shout(annotations: dict[str, Any]) -> None:
        for entry in annotations["annotations"]:
            for answer in entry["answers"]:
                answer["answer"] = "Yes."

    edit(root / VAL_ANNOTATIONS, shout)
    with pytest.warns(
        UserWarning, match=r"v2_mscoco_val2014_annotations\.json: to (\d+) of \1 questions .* 'Yes\.'; .* 'yes' wrong"
    ):
        load_vqav2(root)


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_a_data_root_that_is_no_folder(tmp_path: Path, name: str):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        FileNotFoundError, match=rf"data_root='.*{name}' is not a folder; name the one with VQAv2's JSON files"
    ):
        load_vqav2(tmp_path / name)


@pytest.mark.parametrize("name", [TRAIN_QUESTIONS, TRAIN_ANNOTATIONS, VAL_QUESTIONS, VAL_ANNOTATIONS])
def test_a_missing_file_is_named_beside_what_is_there(root: Path, name: str):
    (root / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"birds has no .* looked for {name} .*found train2014, v2_.*, val2014"):
        load_vqav2(root)


def test_an_empty_data_root(tmp_path: Path):
    with pytest.raises(
        FileNotFoundError, match=r"has no questions file of train2014: looked for v2_OpenEnded_.*, found nothing"
    ):
        load_vqav2(tmp_path)


@pytest.mark.parametrize("name", [TRAIN_QUESTIONS, TRAIN_ANNOTATIONS])
@pytest.mark.parametrize("kept", [0, 1, 100])
def test_truncated_json_is_named_with_the_place(root: Path, name: str, kept: int):
    (root / name).write_text((root / name).read_text()[:kept])
    with pytest.raises(
        ValueError,
        match=rf"{name} is not whole JSON \(.* at line 1, column \d+, character \d+ of {kept}\); the file is truncated",
    ):
        load_vqav2(root)


def test_a_file_that_is_no_text(root: Path):
    (root / TRAIN_QUESTIONS).write_bytes(b"PK\x03\x04\xff\xfe\x00")
    with pytest.raises(ValueError, match=rf"{TRAIN_QUESTIONS} is not text in UTF-8 .*damaged or still packed: get it again"):
        load_vqav2(root)


@pytest.mark.parametrize("text", ["[]", "{}", '{"questions": {}}', "3"])
def test_json_of_another_shape(root: Path, text: str):
    (root / TRAIN_QUESTIONS).write_text(text)
    with pytest.raises(
        ValueError, match=rf"{TRAIN_QUESTIONS} is JSON but not VQAv2's: .* an object with a list named 'questions'"
    ):
        load_vqav2(root)


@pytest.mark.parametrize(("name", "key"), [(TRAIN_QUESTIONS, "questions"), (VAL_ANNOTATIONS, "annotations")])
def test_an_empty_split(root: Path, name: str, key: str):
    edit(root / name, lambda whole: whole[key].clear())
    with pytest.raises(ValueError, match=rf"{name} holds no {key}: its list '{key}' is empty"):
        load_vqav2(root)


@pytest.mark.parametrize(
    ("name", "key", "field"),
    [(TRAIN_QUESTIONS, "questions", field) for field in ("question_id", "image_id", "question")]
    + [
        (TRAIN_ANNOTATIONS, "annotations", field)
        for field in ("question_id", "image_id", "question_type", "answer_type", "multiple_choice_answer", "answers")
    ],
)
def test_missing_and_mistyped_fields_are_named_with_their_place(root: Path, name: str, key: str, field: str):
    edit(root / name, lambda whole: whole[key][1].update({field: None}))
    with pytest.raises(ValueError, match=rf"{name}: {key}\[1\] has {field}=None; it must be of type (int|str|list)"):
        load_vqav2(root)
    edit(root / name, lambda whole: whole[key][1].pop(field))
    with pytest.raises(
        ValueError, match=rf"{name}: {key}\[1\] has no '{field}'; it needs question_id, image_id, question.*, and has "
    ):
        load_vqav2(root)


def test_an_entry_that_is_no_object(root: Path):
    edit(root / TRAIN_QUESTIONS, lambda whole: whole["questions"].append("What?"))
    with pytest.raises(
        ValueError, match=r"questions\[3\] is 'What\?'; it must be an object with question_id, image_id, question"
    ):
        load_vqav2(root)


def test_answers_must_be_there(root: Path):
    path = root / TRAIN_ANNOTATIONS
    edit(path, lambda whole: whole["annotations"][0]["answers"][4].pop("answer"))
    with pytest.raises(
        ValueError, match=r"annotations\[0\] .*: answers\[4\] is \{.*; it must be an object with a text named 'answer'"
    ):
        load_vqav2(root)
    edit(path, lambda whole: whole["annotations"][0].update(answers=[]))
    with pytest.raises(
        ValueError, match=rf"{path.name}: annotations\[0\] \(question_id 9000\) has an empty list of answers"
    ):
        load_vqav2(root)


@pytest.mark.parametrize(("name", "key"), [(TRAIN_QUESTIONS, "questions"), (TRAIN_ANNOTATIONS, "annotations")])
def test_a_question_id_must_occur_once(root: Path, name: str, key: str):
    edit(root / name, lambda whole: whole[key].append(whole[key][0]))
    with pytest.raises(ValueError, match=rf"{name}: {key}\[3\] repeats question_id \d+; every one must occur once"):
        load_vqav2(root)


def test_an_annotation_without_its_question(root: Path):
    edit(root / TRAIN_QUESTIONS, lambda whole: whole["questions"].pop(1))
    what = "the annotation of question_id 7001 has no question"
    message = rf"{TRAIN_ANNOTATIONS}: {what} in .*{TRAIN_QUESTIONS} \(1 such\); add the question"
    with pytest.raises(ValueError, match=message):
        load_vqav2(root)


def test_a_question_without_its_annotation(root: Path):
    edit(root / VAL_ANNOTATIONS, lambda whole: whole.update(annotations=whole["annotations"][2:]))
    what = "the question of question_id 110000 has no annotation"
    message = rf"{VAL_QUESTIONS}: {what} in .*{VAL_ANNOTATIONS} \(2 such\); add the annotation"
    with pytest.raises(ValueError, match=message):
        load_vqav2(root)


def test_question_and_annotation_must_mean_the_same_image(root: Path):
    edit(root / TRAIN_ANNOTATIONS, lambda whole: whole["annotations"][0].update(image_id=7))
    with pytest.raises(
        ValueError, match=r"question_id 9000 is about image_id 9 in .*, but about 7 in .*; the two files must agree"
    ):
        load_vqav2(root)


def test_missing_images_are_counted(root: Path):
    for image_id in (103, 105):
        (root / "val2014" / f"COCO_val2014_{image_id:012d}.jpg").unlink()
    message = (
        rf"{VAL_QUESTIONS}: question_id 103000: there is no image .*COCO_val2014_000000000103\.jpg; "
        r"that folder holds COCO_val2014_000000000100\.jpg, .* and 7 more \(2 of 12 images are missing\); "
        r"put them there; or pass on_bad_example=\"skip\""
    )
    with pytest.raises(FileNotFoundError, match=message):
        load_vqav2(root)


def test_a_missing_image_folder(root: Path):
    (root / "val2014").rename(root / "images")
    with pytest.raises(
        FileNotFoundError, match=r"there is no folder .*val2014; unpack the images there, named like COCO_val2014_0+100"
    ):
        load_vqav2(root)


def test_one_answer_is_not_enough(root: Path):
    def one_answer(whole: dict[str, Any]) -> None:
        for spelling, entry in zip(["The heron", "heron!", "Heron"], whole["annotations"], strict=True):
            entry["multiple_choice_answer"] = spelling

    edit(root / TRAIN_ANNOTATIONS, one_answer)
    with pytest.raises(
        ValueError, match=rf"{TRAIN_ANNOTATIONS}: every question has the answer 'heron'; VQA needs at least two"
    ):
        load_vqav2(root)


@pytest.mark.parametrize(("in_reward", "empty"), [(True, "test"), (False, "reward")])
def test_val2014_must_have_images_on_both_sides(root: Path, in_reward: bool, empty: str):
    def one_side(whole: dict[str, Any]) -> None:
        for key in {"questions", "annotations"} & set(whole):
            whole[key] = [entry for entry in whole[key] if in_reward_split(entry["image_id"]) == in_reward]

    edit(root / VAL_QUESTIONS, one_side)
    edit(root / VAL_ANNOTATIONS, one_side)
    with pytest.raises(ValueError, match=rf"all \d+ fall on one side, so the {empty} split is empty; add images to val2014"):
        load_vqav2(root)


def test_numbers_and_texts_that_cannot_be(root: Path):
    edit(root / TRAIN_QUESTIONS, lambda whole: whole["questions"][1].update(image_id=-7))
    with pytest.raises(ValueError, match=r"questions\[1\] has image_id=-7; it must be 0 or more and less than 2\*\*63"):
        load_vqav2(root)
    edit(root / TRAIN_QUESTIONS, lambda whole: whole["questions"][1].update(image_id=7, question="half \ud83d"))
    with pytest.raises(ValueError, match=r"questions\[1\]: question is 'half \\ud83d', which is no valid text"):
        load_vqav2(root)


@pytest.mark.parametrize("text", ["", "  \n"])
def test_empty_texts(root: Path, text: str):
    edit(root / TRAIN_ANNOTATIONS, lambda whole: whole["annotations"][0].update(multiple_choice_answer=text))
    with pytest.raises(ValueError, match=r"annotations\[0\]: multiple_choice_answer is empty; write the text there"):
        load_vqav2(root)
    edit(root / TRAIN_QUESTIONS, lambda whole: whole["questions"][1].update(question=text))
    with pytest.raises(ValueError, match=r"questions\[1\]: question is empty; write the text there"):
        load_vqav2(root)


def test_one_of_ten_answers_may_be_empty(root: Path):
    edit(root / TRAIN_ANNOTATIONS, lambda whole: whole["annotations"][0]["answers"][4].update(answer=""))
    assert read_vqav2(root, "train2014")[2].answers.count("") == 1


def test_deeply_nested_json(root: Path):
    (root / TRAIN_QUESTIONS).write_bytes(b"[" * 100_000)
    with pytest.raises(ValueError, match=rf"{TRAIN_QUESTIONS} is not whole JSON \(maximum recursion depth.*get it again"):
        load_vqav2(root)


@pytest.mark.parametrize("bad_id", ["100000", True, 2**63, -1, None])
@pytest.mark.parametrize("name", [VAL_QUESTIONS, VAL_ANNOTATIONS])
def test_a_question_of_which_the_id_is_lost_counts_once(root: Path, kept_cache: Path, bad_id: object, name: str):
    edit(root / name, lambda whole: next(v for v in whole.values() if isinstance(v, list))[0].update(question_id=bad_id))
    for _ in range(2):  # the second time from the cache
        splits = load_vqav2(root, "skip")
        assert (len(splits.reward) + len(splits.test), splits.left_out_count, len(splits.left_out)) == (11, 1, 2)


def test_what_is_bad_on_both_sides_counts_once(root: Path):
    edit(root / VAL_QUESTIONS, lambda whole: whole["questions"].__setitem__(3, "no object"))
    edit(root / VAL_QUESTIONS, lambda whole: whole["questions"][0].update(question=""))
    edit(root / VAL_ANNOTATIONS, lambda whole: whole["annotations"][-1].update(answers=[]))
    edit(root / VAL_QUESTIONS, lambda whole: whole["questions"].pop(5))
    splits = load_vqav2(root, "skip")
    assert (len(splits.reward) + len(splits.test), splits.left_out_count) == (9, 3)


def test_a_half_that_became_empty_says_what_was_left_out(root: Path):
    (root / "train2014" / "COCO_train2014_000000000009.jpg").write_bytes(b"")  # of another file: not told of
    for number in range(100, 112):
        if in_reward_split(number):
            (root / "val2014" / f"COCO_val2014_{number:012d}.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"the reward split is empty; .*; the first of \d left out: .*val2014_questions"):
        load_vqav2(root, "skip")


def test_text_in_any_language(root: Path):
    edit(root / TRAIN_QUESTIONS, lambda whole: whole["questions"][1].update(question="灰色ですか 🐦"))
    assert read_vqav2(root, "train2014")[1].question == "灰色ですか 🐦"


def damage(root: Path) -> None:
    """One entry of each kind that can be bad, and images missing, truncated and of another kind."""
    folder, questions, annotations = root / "val2014", root / VAL_QUESTIONS, root / VAL_ANNOTATIONS
    edit(questions, lambda whole: whole["questions"][0].update(question=None))
    edit(questions, lambda whole: whole["questions"].append(whole["questions"][1]))
    edit(annotations, lambda whole: whole["annotations"].append(whole["annotations"][-2]))
    edit(annotations, lambda whole: whole["annotations"][-4].update(answers=[]))  # 102
    edit(annotations, lambda whole: whole["annotations"].pop(-5))  # 103
    edit(annotations, lambda whole: whole["annotations"][-5].update(image_id=110))  # 104
    (folder / "COCO_val2014_000000000105.jpg").unlink()
    (folder / "COCO_val2014_000000000106.jpg").write_bytes(jpeg()[:-20])
    (folder / "COCO_val2014_000000000107.jpg").write_text("<html>404</html>")


def test_what_is_bad_is_left_out_with_a_line_each(root: Path):
    damage(root)
    splits = load_vqav2(root, on_bad_example="skip")
    assert [e.image_id for e in splits.train] == [7, 7, 9]
    assert sorted(e.image_id for e in [*splits.reward, *splits.test]) == [101, 108, 109, 110, 111]
    expected = [
        r"questions\[0\] has question=None; it must be of type str$",
        r"questions\[12\] repeats question_id 101000; every one must occur once: delete one$",
        r"annotations\[\d\] \(question_id 102000\) has an empty list of answers",
        r"question of question_id 103000 has no annotation in .*json; add",
        r"question_id 104000 is about image_id 104 in .* but about 110",
        rf"{VAL_QUESTIONS}: question_id 105000: there is no image .*105\.jpg",
        rf"{VAL_QUESTIONS}: question_id 106000: the image .*106\.jpg cannot be read \(OSError",
        rf"{VAL_QUESTIONS}: question_id 107000: the image .*107\.jpg cannot be read \(UnidentifiedImageError[^;]*$",
    ]
    assert len(splits.left_out) == len(expected) == splits.left_out_count
    for line, pattern in zip(splits.left_out, expected, strict=True):
        assert re.search(pattern, line)


def test_the_first_bad_entry_raises_with_both_ways_out(root: Path):
    damage(root)
    message = r"questions\[0\] has question=None; .*; or pass on_bad_example=\"skip\" to leave out what is bad$"
    with pytest.raises(ValueError, match=message):
        load_vqav2(root)


def test_skipping_everything_is_refused(root: Path):
    for path in (root / "train2014").iterdir():
        path.write_bytes(b"")
    with pytest.raises(
        ValueError, match=rf"{TRAIN_QUESTIONS} holds no usable example, .* of 3 left out: .*question_id 7000: the image"
    ):
        load_vqav2(root, on_bad_example="skip")


def test_an_unknown_policy_is_refused(root: Path):
    with pytest.raises(ValueError, match=r"on_bad_example='ignore' is unknown; choose one of raise, skip"):
        load_vqav2(root, on_bad_example="ignore")


def test_large_files_are_read_once(root: Path, kept_cache: Path, monkeypatch: pytest.MonkeyPatch):
    first = load_vqav2(root)
    assert len(list(kept_cache.glob("vqav2/*.npz"))) == 2
    with monkeypatch.context() as patch:
        patch.setattr(json, "loads", None)  # no JSON is read
        again = load_vqav2(root)
        pickled = pickle.loads(pickle.dumps(again.train))
    for split in ("train", "reward", "test"):
        assert list(getattr(again, split)) == list(getattr(first, split))
    assert list(pickled) == list(first.train)


def test_the_cache_follows_its_files_and_survives_damage(root: Path, kept_cache: Path):
    load_vqav2(root)
    edit(root / TRAIN_QUESTIONS, lambda whole: whole["questions"][0].update(question="Another question?"))
    assert read_vqav2(root, "train2014")[0].question == "Another question?"
    for path in kept_cache.glob("vqav2/*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    assert len(load_vqav2(root).train) == 3
    assert len(load_vqav2(root).train) == 3


def test_the_cache_of_one_policy_does_not_hide_bad_entries_from_the_other(root: Path, kept_cache: Path):
    damage(root)
    skipped = load_vqav2(root, on_bad_example="skip")
    assert load_vqav2(root, on_bad_example="skip").left_out == skipped.left_out
    assert len(list(kept_cache.glob("vqav2/*.npz"))) == 2
    with pytest.raises(ValueError, match=r"questions\[0\] has question=None"):
        load_vqav2(root)


def test_a_cache_folder_that_is_a_file_costs_nothing_but_time(root: Path, kept_cache: Path):
    (kept_cache / "vqav2").write_text("in the way")
    assert len(load_vqav2(root).train) == 3


def test_tables_slice_take_and_iterate_like_tuples(root: Path):
    table = read_vqav2(root, "val2014")
    whole = tuple(table)
    assert (len(table), table[-1], list(table[2:9:3])) == (12, whole[-1], list(whole[2:9:3]))
    assert list(table[3:].take(np.array([1, 0]))) == [whole[4], whole[3]]
    assert table[5] in table
    with pytest.raises(IndexError):
        table[12]


def test_the_vocabulary_of_a_table_is_that_of_its_examples(root: Path):
    table = read_vqav2(root, "train2014")
    assert answer_vocabulary(table, min_count=1) == answer_vocabulary(tuple(table), min_count=1) == ("heron", "yes", "2")


def examples_with(answers: list[str]) -> list[VQAExample]:
    return [VQAExample(n, n, ImageFile(Path()), "?", "", "", answer, (answer,)) for n, answer in enumerate(answers)]


def test_the_vocabulary_is_in_first_seen_order():
    examples = examples_with(["b"] * 3 + ["a"] * 5 + ["c"] * 2 + ["b"])
    assert answer_vocabulary(examples, min_count=1) == ("b", "a", "c")
    assert answer_vocabulary(examples, min_count=4) == ("b", "a")


@pytest.mark.parametrize(
    ("counts", "kept"),
    [
        ({"a": 50, "b": 45, "c": 9, "d": 8}, "abc"),  # nine is VQAv2's threshold: 104 of 112 questions stay
        ({"a": 40, "b": 8, "c": 8}, "abc"),  # nine would keep 71 %, eight keeps all
        ({"a": 10, "b": 5, "c": 1, "d": 1}, "abcd"),  # 2 keeps 15 of 17 = 88 %
        ({"a": 10, "b": 8, "c": 1, "d": 1}, "ab"),  # 2 to 8 keep 18 of 20 = 90 %
        ({"a": 100, "b": 2, "c": 1}, "ab"),  # nine would keep 97 %, but one answer
        ({"a": 1, "b": 1}, "ab"),
    ],
)
def test_the_default_threshold_keeps_90_percent_answerable(counts: dict[str, int], kept: str):
    examples = examples_with([answer for answer, count in counts.items() for _ in range(count)])
    assert answer_vocabulary(examples) == tuple(kept)


def test_the_vocabulary_of_a_data_set_is_of_train_and_val_in_the_order_of_their_files(root: Path):
    splits = load_vqav2(root)
    val = read_vqav2(root, "val2014")
    assert list(splits.reward.joined(splits.test)) == list(val)
    answers = dict.fromkeys(example.answer for table in (splits.train, val) for example in table)
    assert splits_vocabulary(splits, min_count=1) == tuple(answers)
    assert set(answers) > {example.answer for example in splits.train}


def test_nine_answers_in_train_and_val_together_are_enough():
    parts = [examples_with(answers) for answers in (["a"] * 90 + ["b"] * 5, ["c"] * 3 + ["b"] * 2, ["b"] * 2 + ["c"] * 5)]
    assert splits_vocabulary(Splits(*parts)) == ("a", "b")


def test_a_threshold_too_high_says_what_to_pass():
    examples = examples_with(["a"] * 8 + ["b"] * 3 + ["c"])
    message = r"min_count=5 leaves fewer than two answers of 3; the second .* given to 3 of 12 questions: pass min_count=3"
    with pytest.raises(ValueError, match=message):
        answer_vocabulary(examples, min_count=5)
    with pytest.raises(ValueError, match=r"min_count=0; pass 1 or more, or None to have it chosen"):
        answer_vocabulary(examples, min_count=0)


def test_fewer_than_two_answers_make_no_vocabulary():
    with pytest.raises(
        ValueError, match=r"the 3 examples have 1 different answers, 'a'; VQA needs at least two to choose from"
    ):
        answer_vocabulary(examples_with(["a"] * 3))
    with pytest.raises(ValueError, match=r"the 0 examples have 0 different answers"):
        answer_vocabulary([])
