"""VQA examples."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

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
        answers: Every annotator's answer, ten in VQAv2; see `normalized_answers`.
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


def normalized_answers(answers: Sequence[str]) -> tuple[str, ...]:
    """Return the answers normalized, but as written where all annotators wrote the same.

    The official script compares a unanimous answer as it is written.
    """
    written = {as_written(answer) for answer in set(answers)}
    if len(written) == 1:
        return (sys.intern(written.pop()),) * len(answers)
    return tuple(sys.intern(normalize_answer(answer)) for answer in answers)  # VQAv2 has millions, few of them distinct
