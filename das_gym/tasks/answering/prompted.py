"""VQAv2's and NLVR2's data, read by their own readers, as questions to a model that answers in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from das_gym.data.arrow import is_arrow
from das_gym.data.checks import BadExamples
from das_gym.data.splits import Mapped, Splits
from das_gym.tasks.answering.examples import AnswerExample
from das_gym.tasks.answering.prompts import TRUE_OR_FALSE, instructed
from das_gym.tasks.nlvr2.arrow import FILES as NLVR2_FILES
from das_gym.tasks.nlvr2.arrow import load_arrow_nlvr2
from das_gym.tasks.nlvr2.files import NLVR2Example, load_nlvr2
from das_gym.tasks.vqa.arrow import FILES as VQA_FILES
from das_gym.tasks.vqa.arrow import OUT_OF_VOCABULARY, load_arrow_vqa
from das_gym.tasks.vqa.examples import VQAExample, VQATable
from das_gym.tasks.vqa.vqav2 import load_vqav2, read_vqav2
from das_gym.tasks.vqa.vqav2_files import SPLITS

TRUTHS = ("true", "false")
"""NLVR2's answers."""

MAX_FAMILIES = 20
"""A data set of no more question types than these is grouped by them, another (VQAv2 has 65) by the types of its answers."""


def load_prompted_vqa(data_root: str | Path, on_bad_example: str = "raise") -> Splits[AnswerExample]:
    """VQAv2's files, or arrow tables: each question with LLaVA's instruction, and what all annotators said.

    The reference answer is the most frequent one. A question whose every answer is empty when it is normalised, such as
    `a`, is left out, and told of in `Splits.left_out` whatever `on_bad_example` is: VQAv2 itself has some.

    Raises:
        FileNotFoundError, ValueError: As the readers of `das_gym.tasks.vqa` have them.
    """
    load = load_arrow_vqa if is_arrow(data_root, VQA_FILES) else load_vqav2
    splits = load(data_root, on_bad_example)
    asked = {name: _answerable(getattr(splits, name)) for name in ("train", "reward", "test")}
    make = partial(_asked, by_question=_by_question(asked.values()))
    dropped = {name: len(getattr(splits, name)) - len(part) for name, part in asked.items()}
    lines = tuple(
        f"{data_root}: {count} questions of the {name} split, whose every answer is empty when it is normalised"
        for name, count in dropped.items()
        if count
    )
    count = splits.left_out_count + sum(dropped.values())
    train, reward, test = (Mapped(part, make) for part in asked.values())
    return Splits(train, reward, test, (*splits.left_out, *lines), count)


def load_prompted_part(data_root: str | Path, part: str, on_bad_example: str = "raise") -> Sequence[AnswerExample]:
    """A part of VQAv2's files alone, asked as `load_prompted_vqa` does: `train2014`, `val2014`, `test2015`, `test-dev2015`.

    Of the last two nobody has answers.

    Raises:
        FileNotFoundError, ValueError: As `das_gym.tasks.vqa.vqav2.read_vqav2`.
    """
    read: Sequence[VQAExample] = read_vqav2(data_root, part, BadExamples(on_bad_example))
    if part in SPLITS:
        read = _answerable(read)
    return Mapped(read, partial(_asked, by_question=_by_question([read])))


def _by_question(parts: Iterable[Sequence[VQAExample]]) -> bool:
    """Whether questions are grouped by their own types."""
    families = {kind for part in parts for kind in _question_types(part)} - {""}
    return 0 < len(families) <= MAX_FAMILIES


def _answerable(part: Sequence[VQAExample]) -> Sequence[VQAExample]:
    """The questions that have an answer of at least one character."""
    if not isinstance(part, VQATable):
        return [example for example in part if any(example.answers)]
    columns = part.columns
    if "" not in columns.names:
        return part
    doubtful = np.flatnonzero(columns.majority[part.rows] == columns.names.index(""))
    keep = np.ones(len(part), bool)
    keep[doubtful] = [any(part[int(index)].answers) for index in doubtful]
    return part.take(keep)


def _question_types(part: Sequence[VQAExample]) -> set[str]:
    if not isinstance(part, VQATable):
        return {example.question_type for example in part}
    return {part.columns.names[code] for code in np.unique(part.columns.question_types[part.rows])}


def _asked(example: VQAExample, by_question: bool) -> AnswerExample:
    said = Counter(answer for answer in example.answers if answer not in ("", OUT_OF_VOCABULARY))
    return AnswerExample(
        key=example.key,
        images=(example.image,),
        question=instructed(example.question),
        answer=example.answer or next((answer for answer, _ in said.most_common(1)), ""),
        answers=example.answers,
        kind=example.question_type if by_question else example.answer_type,
        question_id=example.question_id,
    )


def load_prompted_nlvr2(data_root: str | Path, on_bad_example: str = "raise") -> Splits[AnswerExample]:
    """NLVR2's files, or arrow tables: each sentence with both images, left and right, to be called true or false.

    Raises:
        FileNotFoundError, ValueError: As the readers of `das_gym.tasks.nlvr2` have them.
    """
    load = load_arrow_nlvr2 if is_arrow(data_root, NLVR2_FILES) else load_nlvr2
    splits = load(data_root, on_bad_example)
    train, reward, test = (Mapped(part, _judged) for part in (splits.train, splits.reward, splits.test))
    return Splits(train, reward, test, splits.left_out, splits.left_out_examples)


def _judged(example: NLVR2Example) -> AnswerExample:
    return AnswerExample(
        key=example.key,
        images=example.images,
        question=instructed(example.sentence, TRUE_OR_FALSE),
        answer=TRUTHS[0] if example.label else TRUTHS[1],
        options=TRUTHS,
    )
