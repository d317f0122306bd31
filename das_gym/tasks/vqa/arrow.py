"""Reads VQAv2 from arrow tables.

`vqav2_train.arrow` trains. The images of val2014 are halved into reward and test exactly as with VQAv2's own files (see
`in_reward_split`), so that numbers compare whatever the format; they come from `vqav2_val.arrow` or, where that is not
there, from `vqav2_trainable_val.arrow` and `vqav2_rest_val.arrow`, into which ViLT divides it. (ViLT and METER validate on
the 1,000 images of rest_val alone, and train on the others.)

The tables hold less than VQAv2's own files: of each question's ten answers those in the vocabulary of ViLT's scripts, with
soft scores. Each comes back as often as its score says (0.3, 0.6, 0.9, 1.0: 1, 2, 3, 4 times), and the rest of the ten is
`OUT_OF_VOCABULARY`. So targets and accuracy of an answer are those of the scores; but questions without any answer in the
vocabulary were left out when the tables were made, two spellings of an answer were not counted together, and there are no
question types. Accuracies are a little different for that from those with VQAv2's own files.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from das_gym.data.arrow import ArrowFolder, ArrowRows, TaskFiles, open_rows, read_rows
from das_gym.data.checks import BadExamples, check_text
from das_gym.data.splits import Splits
from das_gym.tasks.vqa.columns import ColumnsBuilder, VQAColumns
from das_gym.tasks.vqa.examples import VQAExample, VQATable
from das_gym.tasks.vqa.vqav2 import check_answers, drop_broken, halves
from das_gym.tasks.vqa.vqav2_cache import cached_columns

FILES = TaskFiles("vqa", tables=("vqav2",), raw=("*_questions.json",))

N_ANSWERS = 10

OUT_OF_VOCABULARY = "~out of vocabulary~"
"""Stands for an annotator's answer that the table does not hold; it normalises to itself."""

_COUNTS = {0.3: 1, 0.6: 2, 0.9: 3, 1.0: 4}
"""How many annotators a soft score stands for; 4 is four or more."""

_COLUMNS = {
    "image": "bytes",
    "image_id": "integer",
    "question_id": "list of integer",
    "questions": "list of text",
    "answers": "list of list of text",
    "answer_scores": "list of list of number",
}


def load_arrow_vqa(data_root: str | Path, on_bad_example: str = "raise") -> Splits[VQAExample]:
    """Read VQAv2 from arrow tables, as `Task.load_splits` asks; which part is which stands at the top of this module.

    Raises:
        ImportError: pyarrow is not installed.
        FileNotFoundError: The folder or a table is missing.
        ValueError: A table or an entry is damaged, train has fewer than two different answers, or val has too few images
            to halve.
    """
    tables, bad = ArrowFolder.find(data_root, FILES), BadExamples(on_bad_example)
    train_path = tables.require("train")
    train = _read((train_path,), "train2014", bad)
    check_answers(train, train_path, bad)
    parts = [path for path in map(tables.path, ("trainable_val", "rest_val")) if path.is_file()]
    val_paths = (tables.require("val"),) if tables.path("val").is_file() or not parts else tuple(parts)
    reward, test = halves(_read(val_paths, "val2014", bad), str(val_paths[0]), bad)
    return Splits(train, reward, test, bad.lines, bad.count)


def _read(paths: tuple[Path, ...], split: str, bad: BadExamples) -> VQATable:
    """The questions of some tables, one below the other."""
    bad.new_file()
    starts = np.cumsum([0, *(open_rows(path, _COLUMNS).num_rows for path in paths)]).tolist()
    columns = cached_columns(paths, bad, lambda: _read_columns(paths, starts, bad))
    return drop_broken(VQATable.whole(split, columns, ArrowRows(paths, tuple(starts))), paths[0], bad)


def _read_columns(paths: tuple[Path, ...], starts: list[int], bad: BadExamples) -> VQAColumns:
    builder, seen = ColumnsBuilder(), dict[int, str]()
    for path, start in zip(paths, starts[:-1], strict=True):
        for row, where, question in _questions(path, bad):
            try:
                _check_ids(question, where, seen)
                ten = _ten_answers(question, where)
            except ValueError as error:
                bad.report(error)
                continue
            ids = (question["question_id"], question["image_id"], start + row)
            most_frequent = max(ten, key=lambda answer: (answer != OUT_OF_VOCABULARY, ten.count(answer)))
            builder.add(ids, question["questions"], ("", ""), most_frequent, ten)
    columns = builder.build()
    bad.require(columns.question_ids, str(paths[0]))
    return columns


def _questions(path: Path, bad: BadExamples) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Row, place for errors, and columns of every question; a row whose lists do not fit together is reported."""
    lists = [name for name, kind in _COLUMNS.items() if kind.startswith("list")]
    for row, entry in enumerate(read_rows(path, _COLUMNS)):
        where = f"{path}: row {row}"
        lengths = [len(entry[name] or ()) for name in lists]
        if not lengths[0] or len(set(lengths)) > 1:
            counted = ", ".join(f"{length} in {name}" for name, length in zip(lists, lengths, strict=True))
            bad.report(
                ValueError(f"{where} must hold as many entries, one or more, in each of its lists; it holds {counted}"),
                max(1, *lengths),
            )
            continue
        for number, values in enumerate(zip(*(entry[name] for name in lists), strict=True)):
            yield (
                row,
                f"{where}: questions[{number}]",
                {"image_id": entry["image_id"], **dict(zip(lists, values, strict=True))},
            )


def _check_ids(question: dict[str, Any], where: str, seen: dict[int, str]) -> None:
    """Both ids are there and the question's occurs once; its text is there."""
    for name in ("image_id", "question_id"):
        if question[name] is None or question[name] < 0:
            raise ValueError(f"{where} has {name}={question[name]}; it must be 0 or more")
    check_text(question["questions"], where)
    before = seen.setdefault(question["question_id"], where)
    if before != where:
        raise ValueError(f"{where} repeats question_id {question['question_id']} of {before}; every one must occur once")


def _ten_answers(question: dict[str, Any], where: str) -> list[str]:
    """Each kept answer as often as its soft score says, then `OUT_OF_VOCABULARY`."""
    answers, scores = question["answers"] or [], question["answer_scores"] or []
    if not answers or len(answers) != len(scores):
        raise ValueError(
            f"{where} has {len(answers)} answers and {len(scores)} scores; it needs as many scores as answers, one or more"
        )
    ten: list[str] = []
    for answer, score in zip(answers, scores, strict=True):
        count = 0 if score is None else next((n for known, n in _COUNTS.items() if abs(score - known) < 0.01), 0)
        if answer is None or not count:
            raise ValueError(
                f"{where} has the answer {answer!r:.60} with the score {score}; scores are 0.3, 0.6, 0.9 and 1.0"
            )
        ten += [answer] * count
    return ten + [OUT_OF_VOCABULARY] * (N_ANSWERS - len(ten))
