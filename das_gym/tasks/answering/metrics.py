"""How right a generated answer is."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from das_gym.tasks.answering.examples import AnswerExample
from das_gym.tasks.answering.prompts import LETTERS
from das_gym.tasks.vqa.accuracy import normalize_answer, vqa_accuracy

_LETTER_FIRST = re.compile(r"^\(?([A-Z])(?:\)|[.:,](?:\s|$)|\s*$)")
_LETTER_SAID = re.compile(r"\b(?:[Aa]nswer|[Oo]ption)(?:\s+is)?:?\s*\(?([A-Z])\b(?!')")


def comparable(text: str) -> str:
    """An answer as it is compared: normalised as VQA does it; of a text that this leaves nothing of, the text.

    `The 2 dogs.` is `2 dogs`, and `A`, which VQA takes for an article, is `a`.
    """
    return normalize_answer(text) or text.strip(" \t\n.,:;!?()\"'").lower() or text.strip()


def exact_match(answer: str, reference: str) -> float:
    """1.0 where two answers are the same once they are normalised as VQA does it, else 0.0; an empty one matches nothing."""
    given = comparable(answer)
    return float(bool(given) and given == comparable(reference))


def vqa_accuracy_of(answer: str, answers: Sequence[str]) -> float:
    """VQA's official accuracy of a generated answer, normalised first, see `das_gym.tasks.vqa.accuracy.vqa_accuracy`.

    Args:
        answer: The answer; one that says nothing is wrong, whatever annotators left empty.
        answers: What the annotators said, one or more.

    Returns:
        The accuracy, 0..1: for ten annotators 0, 0.3, 0.6, 0.9 or 1.0.

    Raises:
        ValueError: `answers` is empty.
    """
    accuracy = vqa_accuracy(normalize_answer(answer), answers)
    return accuracy if answer.strip() else 0.0


def chosen_option(generated: str, options: Sequence[str]) -> str | None:
    """The option that a generated text names, or None if it names none or several.

    Letters are found in `B`, `(B)`, `B. a dog` and `The answer is B.`; other options where the text is one of them, or
    has the words of exactly one of them; of `land` and `bare land` the longer one counts.

    Args:
        generated: What the model said.
        options: What it chose from.
    """
    said = comparable(generated)
    same = [option for option in options if comparable(option) == said]
    if same:
        return same[0]
    if all(len(option) == 1 and option in LETTERS for option in options):
        match = _LETTER_FIRST.search(generated.strip()) or _LETTER_SAID.search(generated)
        return match.group(1) if match and match.group(1) in options else None
    named = [option for option in options if _within(comparable(option), said)]
    longest = [o for o in named if not any(o != other and _within(comparable(o), comparable(other)) for other in named)]
    return longest[0] if len(longest) == 1 else None


def _within(words: str, text: str) -> bool:
    """Whether all words occur in a text, one after the other."""
    return bool(words) and f" {words} " in f" {text} "


def score_answer(example: AnswerExample, generated: str) -> float:
    """How right a generated answer is.

    Args:
        example: The question.
        generated: What the model said.

    Returns:
        0..1: whether the reference option was chosen, where there are options; VQA's accuracy, where annotators answered;
        else whether it matches the reference answer.
    """
    if example.options:
        chosen = chosen_option(generated, example.options)
        return float(chosen is not None and chosen == example.answer)
    if example.answers:
        return vqa_accuracy_of(generated, example.answers)
    return exact_match(generated, example.answer)


def summary_by_kind(examples: Sequence[AnswerExample], scores: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Mean scores over all (`overall`) and of each kind that the data set knows (`kind/CLOSED`, ...).

    Args:
        examples: The examples, one or more.
        scores: (len(examples),) 0..1.

    Raises:
        ValueError: There are none, or not as many scores as examples.
    """
    if not len(examples) or len(examples) != len(scores):
        raise ValueError(f"{len(examples)} examples with {len(scores)} scores; pass one or more, and a score for each")
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for example, score in zip(examples, scores, strict=True):
        groups["overall"].append(float(score))
        if example.kind:
            groups[f"kind/{example.kind}"].append(float(score))
    names = ["overall", *sorted(groups.keys() - {"overall"})]
    return {name: sum(groups[name]) / len(groups[name]) for name in names}
