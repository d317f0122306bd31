"""What a model is told beside the data set's own question, where the format has no words for it."""

from __future__ import annotations

from collections.abc import Sequence

IMAGE_MARK = "<image>"
"""Stands in a text where a picture does. Source: LLaVA's conversations."""

SHORT_ANSWER = "Answer the question using a single word or phrase."
"""Source: LLaVA-1.5 (arXiv 2310.03744), section 3.2."""

LETTER_ANSWER = "Answer with the option's letter from the given choices directly."
"""Source: LLaVA-1.5, appendix; its form of multiple choice."""

TRUE_OR_FALSE = "Is this true of the two images? Answer with true or false."

CLASS_QUESTION = "What is the label for this image?"
"""What the reference asks about every picture of AID."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def instructed(question: str, instruction: str = SHORT_ANSWER) -> str:
    """A question with an instruction on a line of its own."""
    return f"{question.strip()}\n{instruction}"


def multiple_choice(question: str, context: str, choices: Sequence[str]) -> str:
    """A question with its context and lettered choices, to be answered with a letter.

    Args:
        question: The question.
        context: What is said besides; empty is told as `N/A`, as the field does.
        choices: Up to 26.
    """
    lettered = " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    return instructed(f"{question.strip()}\nContext: {context.strip() or 'N/A'}\nOptions: {lettered}", LETTER_ANSWER)
