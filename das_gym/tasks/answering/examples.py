"""A question to a model that answers in words."""

from __future__ import annotations

from dataclasses import dataclass

from das_gym.data.images import ImageSource


@dataclass(frozen=True, slots=True)
class AnswerExample:
    """A question about some images, or about none, with the answer that is right.

    Attributes:
        key: Tells it from every other example of its data set.
        images: The pictures, in the order of the `<image>` marks of `rounds` and `question`.
        question: What the user says last, with a mark `<image>` where a picture stands, if it says so; pictures without
            a mark come before everything else.
        answer: The reference answer, whose likelihood is the loss; empty where nobody knows it.
        answers: Every answer that counts, one entry an annotator; empty = `answer` alone.
        options: What there is to choose from, `answer` among them; empty = anything can be said.
        rounds: Earlier questions and answers of the same conversation.
        kind: The data set's own group, such as `count` or `CLOSED`; empty where the format has none.
        question_id: By which its server knows the question; None where the format has none.
    """

    key: str
    images: tuple[ImageSource, ...]
    question: str
    answer: str
    answers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    rounds: tuple[tuple[str, str], ...] = ()
    kind: str = ""
    question_id: int | str | None = None
