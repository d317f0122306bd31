"""VQA examples in columns: hundreds of thousands of questions that take little memory and become objects on access."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from das_gym.data.images import ImageSource
from das_gym.tasks.vqa.accuracy import as_written, normalize_answer


@dataclass(frozen=True, slots=True)
class VQAExample:
    """A question about an image, with the answers of the annotators.

    Attributes:
        question_id, image_id: The data set's own numbers.
        image: The image.
        question: The question as written.
        question_type, answer_type: The data set's own groups, such as `what color is the` and `other`; may be empty.
        answer: The annotators' most frequent answer, normalized.
        answers: Every annotator's answer, ten in VQAv2: normalized, but as written where all annotators wrote the same.
        split: The part of the data set, such as `train2014`.
    """

    question_id: int
    image_id: int
    image: ImageSource
    question: str
    question_type: str
    answer_type: str
    answer: str
    answers: tuple[str, ...]
    split: str = ""

    @property
    def key(self) -> str:
        """A name that is unique in the data set, also where two splits share a question_id."""
        return f"{self.split}/{self.question_id}"


@dataclass(frozen=True, slots=True)
class VQAColumns:
    """The columns of `n` questions. numpy arrays, since pyarrow would be a dependency of 170 MB for everyone.

    Attributes:
        question_ids, image_ids: (n,) int64.
        images: (n,) int64, the argument of `VQATable.image_at` for each question.
        questions: n texts.
        names: Every distinct answer and type.
        question_types, answer_types, majority: (n,) int32, indices into `names`; `majority` is `VQAExample.answer`.
        answers: All annotators' answers, question by question, int32 indices into `names`.
        answer_ends: (n + 1,) int64, where the answers of each question end; begins with 0.
    """

    question_ids: np.ndarray
    image_ids: np.ndarray
    images: np.ndarray
    questions: tuple[str, ...]
    names: tuple[str, ...]
    question_types: np.ndarray
    answer_types: np.ndarray
    majority: np.ndarray
    answers: np.ndarray
    answer_ends: np.ndarray


@dataclass(frozen=True, slots=True)
class Question:
    """A question as a reader found it: `image` is the argument of `VQATable.image_at`, answers are not yet normalized."""

    question_id: int
    image_id: int
    image: int
    question: str
    question_type: str
    answer_type: str
    answer: str
    answers: Sequence[str]


def build_columns(questions: Iterable[Question]) -> VQAColumns:
    """Return the columns of questions, in order."""
    numbers: dict[str, int] = {}
    texts: list[str] = []
    ids, types, answers, counts = array("q"), array("i"), array("i"), array("q")

    def number(name: str) -> int:
        return numbers.setdefault(name, len(numbers))

    for q in questions:
        ids.extend((q.question_id, q.image_id, q.image))
        texts.append(q.question)
        types.extend((number(q.question_type), number(q.answer_type), number(normalize_answer(q.answer))))
        written = {as_written(answer) for answer in set(q.answers)}
        # The official script compares a unanimous answer as it is written.
        code = {answer: number(min(written) if len(written) == 1 else normalize_answer(answer)) for answer in q.answers}
        answers.extend(code[answer] for answer in q.answers)
        counts.append(len(q.answers))
    question_ids, image_ids, images = np.array(ids, np.int64).reshape(-1, 3).T.copy()
    question_types, answer_types, majority = np.array(types, np.int32).reshape(-1, 3).T.copy()
    return VQAColumns(
        question_ids=question_ids,
        image_ids=image_ids,
        images=images,
        questions=tuple(texts),
        names=tuple(numbers),
        question_types=question_types,
        answer_types=answer_types,
        majority=majority,
        answers=np.array(answers, np.int32),
        answer_ends=np.concatenate(([0], np.cumsum(np.array(counts, np.int64)))).astype(np.int64),
    )


@dataclass(frozen=True, eq=False)
class VQATable(Sequence[VQAExample]):
    """Examples that are built on access; a slice is a table with the same columns.

    Attributes:
        split: The split of every example.
        columns: The questions, of which `rows` are in the table.
        image_at: Returns an image by its number in `columns.images`.
        rows: (examples,) int64, indices into the columns.
    """

    split: str
    columns: VQAColumns
    image_at: Callable[[int], ImageSource]
    rows: np.ndarray

    @classmethod
    def whole(cls, split: str, columns: VQAColumns, image_at: Callable[[int], ImageSource]) -> VQATable:
        """Return the table of all questions."""
        return cls(split, columns, image_at, np.arange(len(columns.question_ids)))

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> VQAExample: ...
    @overload
    def __getitem__(self, index: slice) -> VQATable: ...
    def __getitem__(self, index: int | slice) -> VQAExample | VQATable:
        if isinstance(index, slice):
            return replace(self, rows=self.rows[index])
        row = int(self.rows[index])
        return self._example(row, self.image_at(int(self.columns.images[row])))

    def __iter__(self) -> Iterator[VQAExample]:
        last = None
        for row, number in zip(self.rows.tolist(), self.images().tolist(), strict=True):
            if number != last:  # questions about one image mostly follow each other
                last, image = number, self.image_at(number)
            yield self._example(row, image)

    def take(self, indices: np.ndarray) -> VQATable:
        """Return the table of some of the examples, given indices or a boolean for each."""
        return replace(self, rows=self.rows[indices])

    def images(self) -> np.ndarray:
        """Return the image number of each example, (examples,) int64."""
        return self.columns.images[self.rows]

    def answer_counts(self) -> Counter[str]:
        """Return how many examples have each `answer`, in first-seen order."""
        codes, first, counts = np.unique(self.columns.majority[self.rows], return_index=True, return_counts=True)
        order = np.argsort(first)
        names = self.columns.names
        return Counter(
            {names[code]: count for code, count in zip(codes[order].tolist(), counts[order].tolist(), strict=True)}
        )

    def _example(self, row: int, image: ImageSource) -> VQAExample:
        columns, names = self.columns, self.columns.names
        answers = columns.answers[columns.answer_ends[row] : columns.answer_ends[row + 1]]
        return VQAExample(
            question_id=int(columns.question_ids[row]),
            image_id=int(columns.image_ids[row]),
            image=image,
            question=columns.questions[row],
            question_type=names[columns.question_types[row]],
            answer_type=names[columns.answer_types[row]],
            answer=names[columns.majority[row]],
            answers=tuple(map(names.__getitem__, answers.tolist())),
            split=self.split,
        )
