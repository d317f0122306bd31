"""VQA examples in columns: hundreds of thousands of questions that load at once and become objects when looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, overload

import numpy as np

from das_gym.data.images import ImageSource
from das_gym.tasks.vqa.columns import VQAColumns


@dataclass(frozen=True, slots=True)
class VQAExample:
    """A question about an image, with what people answered.

    Attributes:
        question_id, image_id: The data set's own numbers.
        image: The picture.
        question: The question as written.
        question_type, answer_type: The data set's own groups, such as `what color is the` and `other`; empty where the
            format does not have them.
        answer: The annotators' most frequent answer, normalised.
        answers: Every annotator's answer, ten in VQAv2: normalised, but as written where all wrote the same.
        split: The part of the data set that it comes from, such as `train2014`.
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
        """Tells the question from every other of the data set, also where two splits share a question_id."""
        return f"{self.split}/{self.question_id}"


class ImagesByPlace(Protocol):
    """The images of a split."""

    def __call__(self, place: int) -> ImageSource:
        """The image at a place."""
        ...

    def missing(self, places: Sequence[int]) -> list[int]:
        """Those of the places where there is no image, found without opening any."""
        ...


@dataclass(frozen=True, eq=False)
class VQATable(Sequence[VQAExample]):
    """Examples that are built when they are asked for; a slice is a table on the same columns.

    Attributes:
        split: Every example's.
        columns: The questions, of which `rows` are in the table.
        image_at: The image at a place.
        rows: (examples,) int64, indices in the columns.
    """

    split: str
    columns: VQAColumns
    image_at: ImagesByPlace
    rows: np.ndarray

    @classmethod
    def whole(cls, split: str, columns: VQAColumns, image_at: ImagesByPlace) -> VQATable:
        """The table of all questions."""
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
        return self._example(row, self.image_at(int(self.columns.places[row])))

    def __iter__(self) -> Iterator[VQAExample]:
        last = None
        for row, place in zip(self.rows.tolist(), self.places().tolist(), strict=True):
            if place != last:  # questions about an image mostly follow each other
                last, image = place, self.image_at(place)
            yield self._example(row, image)

    def take(self, indices: np.ndarray) -> VQATable:
        """The table of some of the examples: indices, or a boolean for each."""
        return replace(self, rows=self.rows[indices])

    def joined(self, other: VQATable) -> VQATable:
        """The examples of both, tables on the same columns, in the order of the columns."""
        return replace(self, rows=np.union1d(self.rows, other.rows))

    def image_ids(self) -> np.ndarray:
        """(examples,) int64."""
        return self.columns.image_ids[self.rows]

    def places(self) -> np.ndarray:
        """(examples,) int64, see `VQAColumns.places`."""
        return self.columns.places[self.rows]

    def answer_counts(self) -> Counter[str]:
        """How many examples have each `answer`, in first-seen order."""
        codes, first, counts = np.unique(self.columns.majority[self.rows], return_index=True, return_counts=True)
        order = np.argsort(first)
        names = self.columns.names
        return Counter(
            {names[code]: count for code, count in zip(codes[order].tolist(), counts[order].tolist(), strict=True)}
        )

    def _example(self, row: int, image: ImageSource) -> VQAExample:
        columns = self.columns
        names = columns.names
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
