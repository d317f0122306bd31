"""The arrow tables of three tasks: what their rows become, how they are divided, and bad rows."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from das_gym.data.rows import CellImage
from das_gym.data.splits import Splits
from das_gym.tasks.nlvr2 import NLVR2Example, load_nlvr2
from das_gym.tasks.retrieval import NUM_TEXTS, load_captions
from das_gym.tasks.vqa.accuracy import normalize_answer, soft_score, vqa_accuracy
from das_gym.tasks.vqa.files import OUT_OF_VOCABULARY, VQAExample, in_reward_split, load_vqa
from tests.arrow_tables import caption_row, nlvr2_row, vqa_row, write_captions, write_nlvr2, write_table, write_vqa

VQA, NLVR2, CAPTIONS = "vqav2_val", "nlvr2_test1", "f30k_caption_karpathy_val"


def sizes(splits: Splits[Any]) -> list[int]:
    return [len(part) for part in (splits.train, splits.reward, splits.test)]


def test_load_vqa_turns_scores_into_ten_answers(tmp_path):
    heron, grey = load_vqa(write_vqa(tmp_path)).train[:2]
    assert heron == VQAExample(
        question_id=7000,
        image_id=7,
        image=CellImage(tmp_path / "vqav2_train.arrow", 0),
        question="What is in 7?",
        question_type="",
        answer_type="",
        answer="heron",
        answers=("heron",) * 4 + ("2 herons",) * 2 + (OUT_OF_VOCABULARY,) * 4,
        split="train2014",
    )
    assert (grey.answer, grey.answers) == ("no", ("yes",) + ("no",) * 3 + (OUT_OF_VOCABULARY,) * 6)
    for example in (heron, grey):
        for answer in set(example.answers) - {OUT_OF_VOCABULARY}:
            assert vqa_accuracy(answer, example.answers) == pytest.approx(soft_score(example.answers.count(answer)))
    assert normalize_answer(OUT_OF_VOCABULARY) == OUT_OF_VOCABULARY


def test_vqa_val_is_halved_as_with_the_original_files(tmp_path):
    splits = load_vqa(write_vqa(tmp_path / "tables"))
    assert {e.image_id for e in splits.reward} == {n for n in range(100, 112) if in_reward_split(n)}
    assert {e.image_id for e in splits.test} == {n for n in range(100, 112) if not in_reward_split(n)}
    divided = write_vqa(tmp_path / "divided")  # as ViLT divides val
    (divided / "vqav2_val.arrow").unlink()
    write_table(divided / "vqav2_trainable_val.arrow", [vqa_row(100 + n, shade=20 * n) for n in range(8)])
    write_table(divided / "vqav2_rest_val.arrow", [vqa_row(100 + n, shade=20 * n) for n in range(8, 12)])
    for example, other in zip(splits.reward, load_vqa(divided).reward, strict=True):
        assert (example.key, example.image.open().tobytes()) == (other.key, other.image.open().tobytes())


def test_load_nlvr2_divides_whole_image_sets(tmp_path):
    splits = load_nlvr2(write_nlvr2(tmp_path))
    path = tmp_path / "nlvr2_test1.arrow"
    images = (CellImage(path, 1, "image_0"), CellImage(path, 1, "image_1"))
    assert splits.test[2] == NLVR2Example("test1-3-1-0", "Both are grey.", images, True)
    train, reward = ({e.identifier.split("-")[1] for e in part} for part in (splits.train, splits.reward))
    assert (len(train), len(reward), train & reward, sizes(splits)) == (18, 2, set(), [72, 8, 4])
    path.unlink()  # then dev is the test split
    assert {e.identifier.split("-")[0] for e in load_nlvr2(tmp_path).test} == {"dev"}
    (tmp_path / "nlvr2_dev.arrow").unlink()
    with pytest.raises(FileNotFoundError, match="no table of test1 or dev"):
        load_nlvr2(tmp_path)


def test_nlvr2_needs_two_image_sets(tmp_path):
    write_table(write_nlvr2(tmp_path) / "nlvr2_train.arrow", [nlvr2_row("train-1-0"), nlvr2_row("train-1-1")])
    with pytest.raises(ValueError, match=r"nlvr2_train\.arrow"):
        load_nlvr2(tmp_path)


def test_load_captions_trains_on_restval_too(tmp_path):
    splits = load_captions(write_captions(tmp_path))
    example = splits.reward[6]
    assert (example.key, example.image_id, example.caption) == ("36", 7, "Caption 1 of val1.")
    assert example.image == CellImage(tmp_path / f"{CAPTIONS}.arrow", 1)
    assert (len(example.texts), sizes(splits)) == (NUM_TEXTS, [30, 25, 25])
    assert len({e.key for part in (splits.train, splits.reward, splits.test) for e in part}) == 80
    folder = write_captions(tmp_path / "coco", "coco_caption_karpathy")
    write_table(folder / "coco_caption_karpathy_restval.arrow", [caption_row("rest0"), caption_row("rest1")])
    train = load_captions(folder).train
    assert (len(train), train[-1].caption) == (40, "Caption 4 of rest1.")


Rows = Callable[..., list[dict[str, Any]]]
READERS: dict[str, tuple[Callable[[Path], Path], Callable[..., Splits[Any]], Rows]] = {
    VQA: (write_vqa, load_vqa, lambda **c: [vqa_row(100), vqa_row(101) | c, *(vqa_row(102 + n) for n in range(10))]),
    NLVR2: (write_nlvr2, load_nlvr2, lambda **c: [nlvr2_row("test1-3-1"), nlvr2_row("test1-3-0", **c)]),
    CAPTIONS: (
        write_captions,
        load_captions,
        lambda **c: [caption_row(f"v{n}", **(c if n == 1 else {})) for n in range(6)],
    ),
}
"""What writes the tables, what reads them, and rows for one of them of which the second is changed."""

# Table, change, message, and how many examples are missing
BAD_ROWS: list[tuple[str, dict[str, Any], str, int]] = [
    (VQA, {"questions": ["What?"]}, r"row 1: lists of different lengths: got 2 in question_id, 1 in questions", 2),
    (VQA, {"question_id": [100000, 6]}, r"row 1, entry 0 repeats `question_id` 100000 of .*row 0, entry 0", 1),
    (VQA, {"answers": [["a"], ["yes", "no"]]}, r"row 1, entry 0: got 1 answers and 2 scores", 1),
    (VQA, {"answer_scores": [[1.0, 0.5], [0.3, 0.3]]}, r"row 1, entry 0: wrong score of '2 herons': got 0\.5", 1),
    (VQA, {"image": b"no image"}, r"question_id 101000: image in row 1", 2),
    (NLVR2, {"identifier": "dev-3"}, r"row 1, entry 0: wrong `identifier`", 2),
    (NLVR2, {"answers": ["True", "maybe"]}, r"row 1, entry 1 .*`answers`", 1),
    (NLVR2, {"questions": ["A.", "A."]}, r"row 1, entry 1 repeats `sentence`", 1),
    (NLVR2, {"image_1": b"no image"}, r"test1-3-0-0: image_1 in row 1 of .* cannot be read", 2),
    (CAPTIONS, {"image_id": None}, r"row 1: wrong type of `image_id`", 5),
    (CAPTIONS, {"image_id": "train0.jpg"}, r"row 1 repeats `image_id` train0\.jpg of .*train\.arrow: row 0", 5),
    (CAPTIONS, {"caption": ["One.", " ", "Three."]}, r"row 1, entry 1: `caption` is empty", 3),
]


@pytest.mark.parametrize(("table", "changes", "message", "fewer"), BAD_ROWS)
def test_bad_entry_is_named_or_skipped(table, changes, message, fewer, tmp_path):
    write, load, rows = READERS[table]
    folder = write(tmp_path / "tables")
    write_table(folder / f"{table}.arrow", rows())
    before = sum(sizes(load(folder)))
    write_table(folder / f"{table}.arrow", rows(**changes))
    if not changes.keys() & {"image", "image_1"}:  # damage of an image is found when it is opened
        with pytest.raises(ValueError, match=rf"{table}\.arrow: {message}"):
            load(folder)
    splits = load(folder, on_bad_example="skip")
    assert re.search(message, splits.left_out[0])
    assert before - sum(sizes(splits)) == fewer
