"""VQAv2 from arrow tables: the same examples as from its own files, as far as the tables go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from das_gym.data.arrow import ArrowImage
from das_gym.data.cache import CACHE_VARIABLE
from das_gym.tasks.vqa.accuracy import normalize_answer, soft_score, vqa_accuracy
from das_gym.tasks.vqa.arrow import OUT_OF_VOCABULARY, load_arrow_vqa
from das_gym.tasks.vqa.examples import VQAExample
from das_gym.tasks.vqa.vqav2 import in_reward_split
from tests.arrow_tables import vqa_row, write_table, write_vqa


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return write_vqa(tmp_path / "tables")


def test_load_arrow_vqa_turns_scores_into_ten_answers(folder: Path):
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
    for example in (heron, grey):
        for answer in set(example.answers) - {OUT_OF_VOCABULARY}:
            assert vqa_accuracy(answer, example.answers) == pytest.approx(soft_score(example.answers.count(answer)))
    assert normalize_answer(OUT_OF_VOCABULARY) == OUT_OF_VOCABULARY


def test_val_is_halved_as_with_the_original_files(folder: Path, tmp_path: Path):
    splits = load_arrow_vqa(folder)
    assert {e.image_id for e in splits.reward} == {n for n in range(100, 112) if in_reward_split(n)}
    assert {e.image_id for e in splits.test} == {n for n in range(100, 112) if not in_reward_split(n)}
    divided = write_vqa(tmp_path / "divided")  # as ViLT divides val
    (divided / "vqav2_val.arrow").unlink()
    write_table(divided / "vqav2_trainable_val.arrow", [vqa_row(100 + n, shade=20 * n) for n in range(8)])
    write_table(divided / "vqav2_rest_val.arrow", [vqa_row(100 + n, shade=20 * n) for n in range(8, 12)])
    for example, other in zip(splits.reward, load_arrow_vqa(divided).reward, strict=True):
        assert (example.key, example.image.open().tobytes()) == (other.key, other.image.open().tobytes())


BAD_ROWS: list[tuple[dict[str, Any], str, int]] = [
    ({"questions": ["What?"]}, r"row 1: lists of different lengths: got 2 in question_id, 1 in questions", 2),
    ({"image_id": None}, r"row 1, entry 0: wrong `image_id`", 2),
    ({"question_id": [-5, 6]}, r"row 1, entry 0: wrong `question_id`", 1),
    ({"question_id": [100000, 6]}, r"row 1, entry 0 repeats `question_id` 100000 of .*row 0, entry 0", 1),
    ({"answers": [["a"], ["yes", "no"]]}, r"row 1, entry 0: got 1 answers and 2 scores", 1),
    ({"answer_scores": [[1.0, 0.5], [0.3, 0.3]]}, r"row 1, entry 0: wrong score of '2 herons': got 0\.5", 1),
    ({"answers": [["a", None], ["yes", "no"]]}, r"row 1, entry 0: wrong score of None", 1),
    ({"image": b"no image"}, r"question_id 101000: image in row 1", 2),
]


@pytest.mark.parametrize(("changes", "message", "fewer"), BAD_ROWS)
def test_bad_entry_is_named_or_skipped(folder: Path, changes: dict[str, Any], message: str, fewer: int):
    path = folder / "vqav2_val.arrow"
    rows = [vqa_row(100 + n) for n in range(12)]
    rows[1] |= changes
    write_table(path, rows)
    if "image" not in changes:  # damage of an image is found when it is opened
        with pytest.raises(ValueError, match=rf"vqav2_val\.arrow: {message}"):
            load_arrow_vqa(folder)
    splits = load_arrow_vqa(folder, on_bad_example="skip")
    assert (len(splits.reward) + len(splits.test), splits.left_out_count) == (24 - fewer, fewer)
