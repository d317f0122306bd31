"""Questions to a model that answers in words, and the prompts that formats have no words for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from das_gym.data.images import ImageSource

IMAGE_MARK = "<image>"
"""Stands in a text where an image does. Source: LLaVA's conversations."""

SHORT_ANSWER = "Answer the question using a single word or phrase."
"""Source: LLaVA-1.5 (arXiv 2310.03744), section 3.2."""

LETTER_ANSWER = "Answer with the option's letter from the given choices directly."
"""Source: LLaVA-1.5, appendix; its form of multiple choice."""

TRUE_OR_FALSE = "Is this true of the two images? Answer with true or false."

CLASS_QUESTION = "What is the label for this image?"
"""The question of the reference about every image of AID."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class AnswerExample:
    """A question about some images, or about none, with the right answer.

    Attributes:
        key: A name that is unique in the data set.
        images: The images, in the order of the `<image>` marks of `rounds` and `question`.
        question: The last message of the user. A mark `<image>` stands for an image; images without a mark come first.
        answer: The reference answer, whose likelihood is the loss; empty where it is not public.
        answers: Every annotator's answer, all of which count; empty = `answer` alone.
        options: The answers to choose from; empty = any answer.
        rounds: Earlier questions and answers of the same conversation.
        kind: The data set's own group, such as `count` or `CLOSED`; may be empty.
        question_id: The number of the question on the data set's evaluation server, if any.
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


def instructed(question: str, instruction: str = SHORT_ANSWER) -> str:
    """Return a question with an instruction on a new line."""
    return f"{question.strip()}\n{instruction}"


def multiple_choice(question: str, context: str, choices: Sequence[str]) -> str:
    """Return a question with its context (`N/A` if empty, as is usual) and up to 26 lettered choices."""
    lettered = " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    return instructed(f"{question.strip()}\nContext: {context.strip() or 'N/A'}\nOptions: {lettered}", LETTER_ANSWER)
