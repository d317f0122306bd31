"""VQAv2 and NLVR2, read by their own readers, as questions to a model that answers in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from das_gym.data.entries import BadExamples
from das_gym.data.splits import LazySequence, Splits
from das_gym.tasks.answering.examples import TRUE_OR_FALSE, AnswerExample, instructed
from das_gym.tasks.nlvr2.files import NLVR2Example, load_nlvr2
from das_gym.tasks.vqa.readers import OUT_OF_VOCABULARY, load_vqa
from das_gym.tasks.vqa.vqav2 import SPLITS, VQAExample, read_vqav2

TRUTHS = ("true", "false")
"""NLVR2's answers."""

MAX_QUESTION_TYPES = 20
"""Examples are grouped by question type, or by answer type where there are more types than this (VQAv2 has 65)."""


def load_prompted_vqa(data_root: str | Path, on_bad_example: str = "raise") -> Splits[AnswerExample]:
    """Read VQAv2's files or arrow tables: each question with LLaVA's instruction, and the answers of all annotators.

    The reference answer is the most frequent one. Questions whose every answer is empty when it is normalized, such as
    `a`, are skipped and counted whatever `on_bad_example` is; VQAv2 has some.
    """
    splits = load_vqa(data_root, on_bad_example)
    parts = (splits.train, splits.reward, splits.test)
    kept = [_answerable(part) for part in parts]
    skipped = sum(map(len, parts)) - sum(map(len, kept))
    lines = [f"{data_root}: {skipped} questions whose every answer is empty when it is normalized"] if skipped else []
    make = partial(_example, by_question=_few_question_types(kept))
    train, reward, test = (LazySequence(part, make) for part in kept)
    return Splits(train, reward, test, (*splits.left_out, *lines))


def load_prompted_part(data_root: str | Path, part: str, on_bad_example: str = "raise") -> Sequence[AnswerExample]:
    """Read a part of VQAv2's files as `load_prompted_vqa` does: `train2014`, `val2014`, `test2015`, `test-dev2015`.

    The answers of the last two are not public.
    """
    read: Sequence[VQAExample] = read_vqav2(data_root, part, BadExamples(on_bad_example))
    if part in SPLITS:
        read = _answerable(read)
    return LazySequence(read, partial(_example, by_question=_few_question_types([read])))


def _few_question_types(parts: Sequence[Sequence[VQAExample]]) -> bool:
    types = {example.question_type for part in parts for example in part}
    return 0 < len(types - {""}) <= MAX_QUESTION_TYPES


def _answerable(part: Sequence[VQAExample]) -> list[VQAExample]:
    """Return the questions that have an answer of at least one character."""
    return [example for example in part if example.answer or any(example.answers)]


def _example(example: VQAExample, by_question: bool) -> AnswerExample:
    counts = Counter(answer for answer in example.answers if answer not in ("", OUT_OF_VOCABULARY))
    return AnswerExample(
        key=example.key,
        images=(example.image,),
        question=instructed(example.question),
        answer=example.answer or next((answer for answer, _ in counts.most_common(1)), ""),
        answers=example.answers,
        kind=example.question_type if by_question else example.answer_type,
        question_id=example.question_id,
    )


def load_prompted_nlvr2(data_root: str | Path, on_bad_example: str = "raise") -> Splits[AnswerExample]:
    """Read NLVR2's files or arrow tables: each sentence with its left and right image, to be called true or false."""
    splits = load_nlvr2(data_root, on_bad_example)
    train, reward, test = (LazySequence(part, _judgement) for part in (splits.train, splits.reward, splits.test))
    return Splits(train, reward, test, splits.left_out)


def _judgement(example: NLVR2Example) -> AnswerExample:
    return AnswerExample(
        key=example.key,
        images=example.images,
        question=instructed(example.sentence, TRUE_OR_FALSE),
        answer=TRUTHS[0] if example.label else TRUTHS[1],
        options=TRUTHS,
    )
