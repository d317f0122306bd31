"""VQAv2 from arrow tables: the same examples as from its own files, as far as the tables go."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from das_gym.data.arrow import ArrowImage
from das_gym.data.cache import CACHE_VARIABLE
from das_gym.tasks.vqa.accuracy import normalize_answer, soft_score, vqa_accuracy
from das_gym.tasks.vqa.arrow import OUT_OF_VOCABULARY, load_arrow_vqa
from das_gym.tasks.vqa.examples import VQAExample
from das_gym.tasks.vqa.vqav2 import answer_vocabulary, in_reward_split
from tests.arrow_tables import vqa_row, write_table, write_vqa


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return write_vqa(tmp_path / "tables")


def test_a_question_by_hand(folder: Path):
    heron, grey = load_arrow_vqa(folder).train[:2]
    assert heron == VQAExample(
        question_id=7000,
        image_id=7,
        image=ArrowImage(folder / "vqav2_train.arrow", 0),
        question="What is in 7?",
        question_type="",
        answer_type="",
        answer="heron",
        answers=("heron",) * 4 + ("2 herons",) * 2 + (OUT_OF_VOCABULARY,) * 4,
        split="train2014",
    )
    assert (grey.answer, grey.answers) == ("no", ("yes",) + ("no",) * 3 + (OUT_OF_VOCABULARY,) * 6)
    assert heron.image.open().size == (24, 16)


def test_ten_answers_stand_for_the_scores(folder: Path):
    for example in load_arrow_vqa(folder).train[:2]:
        for answer in set(example.answers) - {OUT_OF_VOCABULARY}:
            assert vqa_accuracy(answer, example.answers) == pytest.approx(soft_score(example.answers.count(answer)))
    assert normalize_answer(OUT_OF_VOCABULARY) == OUT_OF_VOCABULARY


def test_the_filler_is_never_the_most_frequent_answer(folder: Path):
    write_table(folder / "vqav2_train.arrow", [vqa_row(7, answers=[["a b"], ["c"]], answer_scores=[[0.3], [0.6]])])
    assert answer_vocabulary(load_arrow_vqa(folder).train, min_count=1) == ("b", "c")


def test_val_is_halved_as_with_its_own_files(folder: Path):
    splits = load_arrow_vqa(folder)
    assert {e.image_id for e in splits.train} == {7, 9}
    assert {e.image_id for e in splits.reward} == {n for n in range(100, 112) if in_reward_split(n)}
    assert {e.image_id for e in splits.test} == {n for n in range(100, 112) if not in_reward_split(n)}
    assert {e.key for e in splits.reward} == {f"val2014/{e.question_id}" for e in splits.reward}


def test_vilts_two_parts_make_val(folder: Path, tmp_path: Path):
    whole = load_arrow_vqa(folder)
    divided = write_vqa(tmp_path / "divided")
    (divided / "vqav2_val.arrow").unlink()
    write_table(divided / "vqav2_trainable_val.arrow", [vqa_row(100 + n, shade=20 * n) for n in range(8)])
    write_table(divided / "vqav2_rest_val.arrow", [vqa_row(100 + n, shade=20 * n) for n in range(8, 12)])
    parts = load_arrow_vqa(divided)
    for split in ("reward", "test"):
        examples, others = list(getattr(parts, split)), list(getattr(whole, split))
        assert [e.key for e in examples] == [e.key for e in others]
        assert all(e.image.open().tobytes() == o.image.open().tobytes() for e, o in zip(examples, others, strict=True))


@pytest.mark.parametrize(("gone", "split"), [("vqav2_train.arrow", "train"), ("vqav2_val.arrow", "val")])
def test_a_missing_table(folder: Path, gone: str, split: str):
    (folder / gone).unlink()
    with pytest.raises(FileNotFoundError, match=rf"there is no table .*vqav2_{split}\.arrow"):
        load_arrow_vqa(folder)


BAD_ROWS: list[tuple[dict[str, Any], str, int]] = [
    ({"questions": ["What?"]}, r"row 1 must hold as many entries, .*; it holds 2 in question_id, 1 in questions", 2),
    ({"questions": None}, r"row 1 must hold as many entries, one or more", 2),
    ({"image_id": None}, r"row 1: questions\[0\] has image_id=None; it must be 0 or more", 2),
    ({"question_id": [-5, 6]}, r"row 1: questions\[0\] has question_id=-5", 1),
    ({"question_id": [100000, 6]}, r"row 1: questions\[0\] repeats question_id 100000 of .*row 0: questions\[0\]", 1),
    ({"questions": [None, "?"]}, r"row 1: questions\[0\] is empty", 1),
    ({"questions": ["What?", " \n"]}, r"row 1: questions\[1\] is empty", 1),
    ({"answers": [[], ["yes", "no"]]}, r"row 1: questions\[0\] has 0 answers and 2 scores", 1),
    ({"answers": [["a"], ["yes", "no"]]}, r"row 1: questions\[0\] has 1 answers and 2 scores; it needs as many", 1),
    ({"answer_scores": [[1.0, 0.5], [0.3, 0.3]]}, r"row 1: questions\[0\] has the answer '2 herons' with the score 0\.5", 1),
    ({"answers": [["a", None], ["yes", "no"]]}, r"row 1: questions\[0\] has the answer None with the score 0\.6", 1),
]


@pytest.mark.parametrize(("changes", "message", "fewer"), BAD_ROWS)
def test_a_bad_entry_is_named_or_left_out(folder: Path, changes: dict[str, Any], message: str, fewer: int):
    path = folder / "vqav2_val.arrow"
    rows = [vqa_row(100 + n) for n in range(12)]
    rows[1] |= changes
    write_table(path, rows)
    with pytest.raises(ValueError, match=rf"vqav2_val\.arrow: {message}.*; or pass on_bad_example=\"skip\""):
        load_arrow_vqa(folder)
    splits = load_arrow_vqa(folder, on_bad_example="skip")
    assert re.search(message, splits.left_out[0])
    assert (len(splits.reward) + len(splits.test), splits.left_out_count) == (24 - fewer, fewer)


def test_images_that_do_not_open_are_left_out(folder: Path):
    rows = [vqa_row(100 + n) for n in range(12)]
    rows[4]["image"] = rows[4]["image"][:200]
    write_table(folder / "vqav2_val.arrow", rows)
    splits = load_arrow_vqa(folder, on_bad_example="skip")
    assert [re.sub(r".*: (question_id \d+: image in row \d+).*", r"\1", line) for line in splits.left_out] == [
        "question_id 104000: image in row 4",
        "question_id 104001: image in row 4",
    ]
    assert len(splits.reward) + len(splits.test) == 22


def test_a_test_table_has_no_answers(folder: Path):
    rows = [vqa_row(n, answers=[], answer_scores=[]) for n in range(3)]
    write_table(folder / "vqav2_train.arrow", [vqa_row(1), *rows])
    with pytest.raises(ValueError, match=r"row 1 must hold as many entries, .*, 0 in answers"):
        load_arrow_vqa(folder)


def test_large_tables_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("das_gym.tasks.vqa.vqav2_cache.CACHED_BYTES", 0)
    first = load_arrow_vqa(folder)
    monkeypatch.setattr("das_gym.tasks.vqa.arrow.read_rows", None)
    assert list(load_arrow_vqa(folder).reward) == list(first.reward)
