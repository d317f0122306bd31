"""Scores of generated answers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from das_gym.tasks.answering.examples import LETTERS, AnswerExample
from das_gym.tasks.vqa.accuracy import normalize_answer, vqa_accuracy

ANNOTATORS = 5
"""VQA's accuracy asks for three equal answers among the others; fewer answers are spellings, each of which is right."""

_LETTER_FIRST = re.compile(r"^\(?([A-Z])(?:\)|[.:,](?:\s|$)|\s*$)")
_LETTER_NAMED = re.compile(r"\b(?:[Aa]nswer|[Oo]ption)(?:\s+is)?:?\s*\(?([A-Z])\b(?!')")


def normalize_for_comparison(text: str) -> str:
    """Return an answer normalized as in VQA; but `A`, which VQA takes for an article and removes, is `a`."""
    return normalize_answer(text) or text.strip(" \t\n.,:;!?()\"'").lower() or text.strip()


def exact_match(answer: str, reference: str) -> float:
    """Return 1.0 where two answers are the same after normalization, else 0.0; an empty one matches nothing."""
    given = normalize_for_comparison(answer)
    return float(bool(given) and given == normalize_for_comparison(reference))


def vqa_accuracy_of(answer: str, answers: Sequence[str]) -> float:
    """Return VQA's official accuracy, 0..1, of a generated answer, which is normalized first; a blank answer is wrong."""
    accuracy = vqa_accuracy(normalize_answer(answer), answers)
    return accuracy if answer.strip() else 0.0


def chosen_option(generated: str, options: Sequence[str]) -> str | None:
    """Return the option that a generated text names, or None if it names none or several.

    Letters are found in `B`, `(B)`, `B. a dog` and `The answer is B.`; other options where the text is one of them, or
    has the words of exactly one of them; of `land` and `bare land` the longer one counts.
    """
    text = normalize_for_comparison(generated)
    same = [option for option in options if normalize_for_comparison(option) == text]
    if same:
        return same[0]
    if all(len(option) == 1 and option in LETTERS for option in options):
        match = _LETTER_FIRST.search(generated.strip()) or _LETTER_NAMED.search(generated)
        return match.group(1) if match and match.group(1) in options else None
    named = [option for option in options if _within(normalize_for_comparison(option), text)]
    longest = [
        o
        for o in named
        if not any(o != other and _within(normalize_for_comparison(o), normalize_for_comparison(other)) for other in named)
    ]
    return longest[0] if len(longest) == 1 else None


def _within(words: str, text: str) -> bool:
    """Return whether all words occur in a text, one after the other."""
    return bool(words) and f" {words} " in f" {text} "


def score_answer(example: AnswerExample, generated: str) -> float:
    """Return the score, 0..1, of a generated answer.

    It is 1 if the reference option was chosen, where there are options; VQA's accuracy, where `ANNOTATORS` or more answered;
    else 1 if the answer matches the reference or one of the answers.
    """
    if example.options:
        chosen = chosen_option(generated, example.options)
        return float(chosen is not None and chosen == example.answer)
    if len(example.answers) >= ANNOTATORS:
        return vqa_accuracy_of(generated, example.answers)
    return max(exact_match(generated, answer) for answer in (example.answer, *example.answers))
