"""Read VQAv2, from its own files or from arrow tables.

`vqav2_train.arrow` is for training. The images of val2014 are halved into reward and test as with the official files
(see `in_reward_split`), so that numbers are comparable. They come from `vqav2_val.arrow`, or from
`vqav2_trainable_val.arrow` and `vqav2_rest_val.arrow`, into which ViLT divides it. (ViLT and METER validate on the
1,000 images of rest_val, and train on the others.)

The tables hold less than the official files: of each question's ten answers those in the vocabulary of ViLT's scripts,
with soft scores. Each is read as often as its score says (0.3, 0.6, 0.9, 1.0: 1, 2, 3, 4 times); `OUT_OF_VOCABULARY`
stands for the rest of the ten. Targets and accuracy of an answer are those of the scores. Questions without an answer
in the vocabulary and question types are missing, and two spellings of an answer were not counted together, so
accuracies differ a little from those with the official files.
"""

from __future__ import annotations

from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from das_gym.data.entries import ArrowFormat, BadExamples, check_new, check_text, read_items, require_table
from das_gym.data.splits import Splits
from das_gym.data.tables import CellImage
from das_gym.tasks.vqa.accuracy import normalize_answer
from das_gym.tasks.vqa.vqav2 import VQAExample, halve, normalized_answers, read_vqav2, warn_about_spelling

TABLES = ArrowFormat(
    "vqa",
    prefixes=("vqav2",),
    columns={
        "image": "bytes",
        "image_id": "integer",
        "question_id": "list of integer",
        "questions": "list of text",
        "answers": "list of list of text",
        "answer_scores": "list of list of number",
    },
)

N_ANSWERS = 10

OUT_OF_VOCABULARY = "~out of vocabulary~"
"""Stands for an annotator's answer that the table does not hold; it normalizes to itself."""

_COUNTS = {0.3: 1, 0.6: 2, 0.9: 3, 1.0: 4}
"""How many annotators a soft score stands for; 4 is four or more."""


def load_vqa(data_root: str | Path, on_bad_example: str = "raise") -> Splits[VQAExample]:
    """Read train2014 to train on, and val2014, whose images are halved into reward and test.

    Arguments and errors are those of `Task.load_splits`.
    """
    bad = BadExamples(on_bad_example)
    if not TABLES.is_in(data_root):
        train, val = (read_vqav2(data_root, split, bad) for split in ("train2014", "val2014"))
        warn_about_spelling(val, str(data_root))
        return bad.splits(train, *halve(val, str(data_root), bad), attrgetter("question"))
    tables = TABLES.find(data_root)
    train = _read([require_table(tables, "train")], "train2014", bad)
    parts = [tables[split] for split in ("trainable_val", "rest_val") if split in tables]
    val_paths = [require_table(tables, "val")] if "val" in tables or not parts else parts
    return bad.splits(train, *halve(_read(val_paths, "val2014", bad), str(val_paths[0]), bad), attrgetter("question"))


def _read(paths: list[Path], split: str, bad: BadExamples) -> list[VQAExample]:
    seen: dict[int, str] = {}

    def example(path: Path, item: dict[str, Any], where: str) -> VQAExample:
        for name in ("image_id", "question_id"):
            if item[name] is None or item[name] < 0:
                raise ValueError(f"{where}: wrong `{name}`: got {item[name]}, expected 0 or more")
        check_text(item["questions"], f"{where}: `questions`")
        check_new(seen, item["question_id"], "question_id", where)
        ten = _ten_answers(item, where)
        # `max` returns the first of equals: the answers are in the order of the table's scores.
        most_frequent = max(ten, key=lambda answer: (answer != OUT_OF_VOCABULARY, ten.count(answer)))
        ids = (item["question_id"], item["image_id"])
        image = CellImage(path, item["row"])
        answers = normalize_answer(most_frequent), normalized_answers(ten)
        return VQAExample(*ids, image, item["questions"], "", "", *answers, split)

    examples = []
    for path in paths:
        examples += bad.parse(read_items(path, TABLES.columns, bad), partial(example, path))
    return bad.drop_broken(examples, str(paths[0]), lambda e: f"question_id {e.question_id}")


def _ten_answers(item: dict[str, Any], where: str) -> list[str]:
    """Return each answer as often as its soft score says, then `OUT_OF_VOCABULARY`."""
    answers = item["answers"] or []
    scores = item["answer_scores"] or []
    if not answers or len(answers) != len(scores):
        raise ValueError(
            f"{where}: got {len(answers)} answers and {len(scores)} scores, expected equal numbers of one or more"
        )
    ten: list[str] = []
    for answer, score in zip(answers, scores, strict=True):
        count = 0 if score is None else next((n for known, n in _COUNTS.items() if abs(score - known) < 0.01), 0)
        if answer is None or not count:
            raise ValueError(f"{where}: wrong score of {answer!r:.60}: got {score}, expected {', '.join(map(str, _COUNTS))}")
        ten += [answer] * count
    return ten + [OUT_OF_VOCABULARY] * (N_ANSWERS - len(ten))
