"""The columns that VQA's questions are kept in, however many hundreds of thousands there are.

They are numpy's: pyarrow's would save some 80 lines and 0.2 of 0.3 s, and have everybody install the 170 MB that only
those need who have arrow tables.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from das_gym.tasks.vqa.accuracy import as_written, normalize_answer


@dataclass(frozen=True, slots=True)
class Texts:
    """Many texts, end to end in UTF-8.

    Attributes:
        data: The bytes, uint8.
        ends: (texts + 1,) int64, where each text ends; begins with 0.
    """

    data: np.ndarray
    ends: np.ndarray

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        """The texts, in order."""
        encoded = [text.encode() for text in texts]
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends_of(map(len, encoded)))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int) -> str:
        return self.data[self.ends[index] : self.ends[index + 1]].tobytes().decode()

    def to_list(self) -> list[str]:
        """All of them."""
        whole, ends = self.data.tobytes(), self.ends.tolist()
        return [whole[start:end].decode() for start, end in pairwise(ends)]


def ends_of(lengths: Iterable[int]) -> np.ndarray:
    """(n + 1,) int64: 0 and the running sum of the lengths."""
    return np.cumsum(np.fromiter((0, *lengths), np.int64))


@dataclass(frozen=True, slots=True)
class VQAColumns:
    """What the questions of a split are made of; `n` questions.

    Attributes:
        question_ids, image_ids: (n,) int64.
        places: (n,) int64, where each question's image is, in the sense of `VQATable.image_at`.
        questions: n texts.
        names: Every answer and every type that occurs, each once.
        question_types, answer_types, majority: (n,) int32, indices in `names`; `majority` is `VQAExample.answer`.
        answers: All annotators' answers, question by question, int32 indices in `names`.
        answer_ends: (n + 1,) int64, where the answers of each question end; begins with 0.
    """

    question_ids: np.ndarray
    image_ids: np.ndarray
    places: np.ndarray
    questions: Texts
    names: tuple[str, ...]
    question_types: np.ndarray
    answer_types: np.ndarray
    majority: np.ndarray
    answers: np.ndarray
    answer_ends: np.ndarray


class _Codes(dict[str, int]):
    """Numbers of names in the order in which they came; answers that normalise to the same have the same number."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[str, int] = {}

    def __missing__(self, raw: str) -> int:
        self[raw] = self.number(normalize_answer(raw))
        return self[raw]

    def number(self, name: str) -> int:
        """The number of a name that is taken as it is."""
        return self.numbers.setdefault(name, len(self.numbers))


class ColumnsBuilder:
    """Makes columns, question by question."""

    def __init__(self) -> None:
        self._codes = _Codes()
        self._questions: list[str] = []
        self._ids, self._codes_of = array("q"), array("i")
        self._answers, self._counts = array("i"), array("q")

    def add(
        self, ids: tuple[int, int, int], question: str, types: tuple[str, str], answer: str, answers: Sequence[str]
    ) -> None:
        """Add a question.

        Args:
            ids: Its question id, image id and place, each 0 or more and less than 2**63.
            question: The question as written.
            types: Its question type and answer type.
            answer: The most frequent answer, not yet normalised.
            answers: All annotators' answers, not yet normalised.
        """
        codes = self._codes
        self._ids.extend(ids)
        self._questions.append(question)
        self._codes_of.extend((codes.number(types[0]), codes.number(types[1]), codes[answer]))
        written = {as_written(other) for other in set(answers)}
        one = codes.number(written.pop()) if len(written) == 1 else None  # the official script compares it as it stands
        self._answers.extend([codes[other] if one is None else one for other in answers])
        self._counts.append(len(answers))

    def build(self) -> VQAColumns:
        """The columns of all questions, in the order in which they were added."""
        question_ids, image_ids, places = np.array(self._ids, np.int64).reshape(-1, 3).T.copy()
        question_types, answer_types, majority = np.array(self._codes_of, np.int32).reshape(-1, 3).T.copy()
        return VQAColumns(
            question_ids=question_ids,
            image_ids=image_ids,
            places=places,
            questions=Texts.of(self._questions),
            names=tuple(self._codes.numbers),
            question_types=question_types,
            answer_types=answer_types,
            majority=majority,
            answers=np.array(self._answers, np.int32),
            answer_ends=ends_of(self._counts),
        )
