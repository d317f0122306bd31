"""The reader of VQAv2's format: right on a small data set, clear on a damaged one."""

import functools
import io
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from das_gym.data.images import ImageFile
from das_gym.data.splits import Splits
from das_gym.tasks.base import read_labels
from das_gym.tasks.vqa.files import VQAExample, answer_vocabulary, in_reward_split, load_vqa, read_vqav2
from das_gym.tasks.vqa.task import VQATask

TRAIN_QUESTIONS = "v2_OpenEnded_mscoco_train2014_questions.json"
TRAIN_ANNOTATIONS = "v2_mscoco_train2014_annotations.json"
VAL_QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
VAL_ANNOTATIONS = "v2_mscoco_val2014_annotations.json"
KEYS = {TRAIN_QUESTIONS: "questions", TRAIN_ANNOTATIONS: "annotations"}


@functools.cache
def jpeg(image_id: int) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, format="JPEG", comment=str(image_id))
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
        (root / split / f"COCO_{split}_{image_id:012d}.jpg").write_bytes(jpeg(image_id))


@pytest.fixture
def root(tmp_path) -> Path:
    """A data set with twelve images in val2014, a question each, and annotations in another order."""
    folder = tmp_path / "birds"
    folder.mkdir()
    train = [
        entry_pair(7, 0, "What is on the Table?", ["The Heron!"] * 6 + ["two herons"] * 4),
        entry_pair(7, 1, "Is it grey? 灰 🐦", ["Yes", "no"] * 5),
        entry_pair(9, 0, "How many?", ["two"] * 10),
    ]
    write_split(folder, "train2014", train)
    write_split(folder, "val2014", [entry_pair(100 + n, 0, f"Bird {n}?", ["owl", "crow"] * 5) for n in range(12)])
    return folder


def test_images_with_another_suffix_are_found(root):
    path = root / "train2014" / "COCO_train2014_000000000007.jpg"
    path.rename(path.with_suffix(".PNG"))
    assert [e.image.path.suffix for e in load_vqa(root).train] == [".PNG", ".PNG", ".jpg"]


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    whole = json.loads(path.read_text())
    change(whole)
    path.write_text(json.dumps(whole))


def test_examples_are_in_the_order_of_the_questions(root):
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
    assert (grey.question, grey.answer, grey.answers) == ("Is it grey? 灰 🐦", "yes", ("yes", "no") * 5)
    assert (number.question_id, number.answer, set(number.answers)) == (9000, "2", {"two"})  # unanimous: as written
    assert pickle.loads(pickle.dumps(heron)) == heron


def test_val2014_halves_are_fixed_and_disjoint(root):
    splits = load_vqa(root)
    reward, test = {e.image_id for e in splits.reward}, {e.image_id for e in splits.test}
    assert reward | test == set(range(100, 112))
    assert reward == {number for number in range(100, 112) if in_reward_split(number)}
    assert "".join("rt"[not in_reward_split(image_id)] for image_id in range(32)) == "rttrtttttrttrrrrttrttrttrrrttrtr"
    assert [in_reward_split(image_id) for image_id in (42, 262148, 500_001, 581_929)] == [False, True, True, True]


def test_shared_images_and_repeated_questions_are_warned_about(root):
    (root / "train2014" / "COCO_train2014_000000000009.jpg").write_bytes(jpeg(100))
    with pytest.warns(UserWarning, match="images of the train split are in the test split"):
        load_vqa(root)
    (root / "train2014" / "COCO_train2014_000000000009.jpg").write_bytes(jpeg(9))
    edit(root / VAL_QUESTIONS, lambda whole: [q.update(image_id=101, question="Bird?") for q in whole["questions"][1:3]])
    edit(root / VAL_ANNOTATIONS, lambda whole: whole["annotations"][-3].update(image_id=101))
    with pytest.warns(UserWarning, match="test examples repeat the question .*val2014/102000, which repeats val2014/101000"):
        load_vqa(root)


def test_questions_without_answers_are_read_alone(root):
    """VQA's test-dev is a part of test2015, whose images it has; no other file is needed."""
    questions = [{"image_id": 5, "question": "How many?", "question_id": 50}]
    (root / "v2_OpenEnded_mscoco_test-dev2015_questions.json").write_text(json.dumps({"questions": questions}))
    (root / "test2015").mkdir()
    (root / "test2015" / "COCO_test2015_000000000005.jpg").write_bytes(jpeg(5))
    [example] = read_vqav2(root, "test-dev2015")
    assert (example.question, example.question_id, example.answers) == ("How many?", 50, ())
    assert example.image.path.name == "COCO_test2015_000000000005.jpg"
    assert not VQATask.is_labelled([example])
    assert VQATask.is_labelled(read_vqav2(root, "val2014"))
    with pytest.raises(ValueError, match="`split`: got 'dev'"):
        read_vqav2(root, "dev")


def test_unanimous_answers_that_are_not_normalized_are_warned_about(root):
    def shout(annotations: dict[str, Any]) -> None:
        for entry in annotations["annotations"]:
            for answer in entry["answers"]:
                answer["answer"] = "Yes."

    edit(root / VAL_ANNOTATIONS, shout)
    with pytest.warns(UserWarning, match=r"got (\d+) of \1 questions, such as 'Yes\.'.*'yes'"):
        load_vqa(root)


BAD_ENTRIES: list[tuple[str, dict[str, Any], str]] = [
    *((TRAIN_QUESTIONS, {name: None}, f"`{name}`") for name in ("question_id", "image_id", "question")),
    *((TRAIN_ANNOTATIONS, {name: None}, f"`{name}`") for name in ("question_id", "answer_type", "answers")),
    (TRAIN_QUESTIONS, {"image_id": -7}, "`image_id`"),
    (TRAIN_QUESTIONS, {"question": "half \ud83d"}, "`question` is not valid Unicode"),
    (TRAIN_QUESTIONS, {"question_id": 7000}, "repeats `question_id` 7000"),
    (TRAIN_ANNOTATIONS, {"multiple_choice_answer": ""}, "`multiple_choice_answer` is empty"),
    (TRAIN_ANNOTATIONS, {"answers": []}, "no answers"),
    (TRAIN_ANNOTATIONS, {"answers": [{"answer": "a"}, {"answer_id": 2}]}, r"`answers\[1\]`"),
]


@pytest.mark.parametrize(("name", "changes", "message"), BAD_ENTRIES)
def test_bad_entry_is_named_or_skipped(root, name, changes, message):
    edit(root / name, lambda whole: whole[KEYS[name]][1].update(changes))
    with pytest.raises(ValueError, match=rf"{name}: {KEYS[name]}\[1\].*{message}"):
        load_vqa(root)
    splits = load_vqa(root, "skip")
    assert len(splits.train) == 2
    assert re.search(message, splits.left_out[0])


def test_missing_images_are_counted(root):
    for image_id in (103, 105):
        (root / "val2014" / f"COCO_val2014_{image_id:012d}.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{VAL_QUESTIONS}: question_id 103000: .*103\.jpg .*\(2 images"):
        load_vqa(root)
    (root / "val2014").rename(root / "images")
    with pytest.raises(FileNotFoundError, match=r"val2014 does not exist, .*COCO_val2014_"):
        load_vqa(root)


def test_val2014_must_have_images_on_both_sides(root):
    for number in range(100, 112):
        if not in_reward_split(number):
            (root / "val2014" / f"COCO_val2014_{number:012d}.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none belongs to the test split.*entries were skipped.*val2014_questions"):
        load_vqa(root, "skip")


def damage(root: Path) -> None:
    """One entry of each kind that can be bad, and images missing, truncated and of another kind."""
    folder, questions, annotations = root / "val2014", root / VAL_QUESTIONS, root / VAL_ANNOTATIONS
    edit(questions, lambda whole: whole["questions"][0].update(question=None))
    edit(annotations, lambda whole: whole["annotations"][-3].update(answers=[]))  # 102
    edit(annotations, lambda whole: whole["annotations"].pop(-4))  # 103
    edit(annotations, lambda whole: whole["annotations"][-4].update(image_id=110))  # 104
    (folder / "COCO_val2014_000000000105.jpg").unlink()
    (folder / "COCO_val2014_000000000106.jpg").write_bytes(jpeg(7)[:-20])
    (folder / "COCO_val2014_000000000107.jpg").write_text("<html>404</html>")


def test_bad_entries_are_skipped_with_a_line_each(root):
    damage(root)
    splits = load_vqa(root, on_bad_example="skip")
    assert [e.image_id for e in splits.train] == [7, 7, 9]
    assert sorted(e.image_id for e in [*splits.reward, *splits.test]) == [101, 108, 109, 110, 111]
    assert len(splits.left_out) == 7


def examples_with(answers: list[str]) -> list[VQAExample]:
    return [VQAExample(n, n, ImageFile(Path()), "?", "", "", answer, (answer,)) for n, answer in enumerate(answers)]


@pytest.mark.parametrize(
    ("counts", "kept"),
    [
        ({"a": 50, "b": 45, "c": 9, "d": 8}, "abc"),  # nine is VQAv2's threshold: 104 of 112 questions stay
        ({"a": 10, "b": 5, "c": 1, "d": 1}, "abcd"),  # 2 keeps 15 of 17 = 88 %
        ({"a": 10, "b": 8, "c": 1, "d": 1}, "ab"),  # 2 to 8 keep 18 of 20 = 90 %
        ({"a": 100, "b": 2, "c": 1}, "ab"),  # nine would keep 97 %, but one answer
    ],
)
def test_answer_vocabulary_keeps_90_percent_answerable(counts, kept):
    examples = examples_with([answer for answer, count in counts.items() for _ in range(count)])
    assert answer_vocabulary(examples) == tuple(kept)


def test_choose_labels_counts_train_and_val_together():
    parts = [examples_with(answers) for answers in (["a"] * 90 + ["b"] * 5, ["c"] * 3 + ["b"] * 2, ["b"] * 2 + ["c"] * 5)]
    assert VQATask.choose_labels(Splits(*parts)) == ("a", "b")


@pytest.mark.parametrize(("answers", "min_count"), [("aaaaaaaabbbc", 5), ("ab", 0), ("aaa", None), ("", None)])
def test_answer_vocabulary_rejects_fewer_than_two_answers(answers, min_count):
    with pytest.raises(ValueError, match=r"`min_count`|too few different answers"):
        answer_vocabulary(examples_with(list(answers)), min_count=min_count)


def test_read_labels_rejects_another_file(tmp_path):
    path = tmp_path / "answers.json"
    path.write_text('["yes", "caf\\u00e9"]')
    assert read_labels(path) == ("yes", "café")
    for text in ('{"answers": ["a", "b"]}', "[1, 2]", '["a", "b", "a"]', '["a"]'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"answers\.json is not an answer vocabulary"):
            read_labels(path)
