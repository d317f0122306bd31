"""Answering: the model generates the answer, token by token."""

import itertools
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from das_gym.data.entries import BadExamples
from das_gym.data.rows import Table
from das_gym.data.splits import Splits
from das_gym.models.inputs import Prompt
from das_gym.names import PARTS
from das_gym.tasks.answering.examples import IMAGE_MARK, LETTERS, AnswerExample, examples_by_round
from das_gym.tasks.answering.reading import detect_format, load_answers, load_answers_part
from das_gym.tasks.answering.tables import divide_tables, read_tables
from das_gym.tasks.base import TokenTask, sum_by_prompt, token_nats
from das_gym.tasks.vqa.accuracy import normalize_answer, vqa_accuracy

ANNOTATORS = 5
"""VQA's accuracy asks for three equal answers among the others; fewer answers are spellings, each of which is right."""

_LETTER_FIRST = re.compile(r"^\(?([A-Z])(?:\)|[.:,](?:\s|$)|\s*$)")
_LETTER_NAMED = re.compile(r"\b(?:[Aa]nswer|[Oo]ption)(?:\s+is)?:?\s*\(?([A-Z])\b(?!')")


class AnsweringTask(TokenTask):
    """Generated answers. The loss is that of the reference answer; the metric is exact match, or choosing the right option.

    An example is one prompt, or one per option. Logits of the answers' tokens are teacher-forced: greedy generation gives an
    answer if and only if all its tokens are the likeliest.
    """

    name = "answering"
    metric_name = "exact_match"
    generates = True

    @classmethod
    def load_splits(
        cls, data_root: str | Path | None, on_bad_example: str = "raise", columns: str | None = None
    ) -> Splits[AnswerExample]:
        """Read any format of `das_gym.tasks.answering.reading`; None is Shapes-VQA."""
        return load_answers(data_root, on_bad_example, columns)

    @classmethod
    def divide_rows(  # type: ignore[override]
        cls, parts: Mapping[str, Table], bad: BadExamples, columns: str | None = None
    ) -> Splits[AnswerExample]:
        """Return the splits of rows with image, question and answer; see `divide_tables`."""
        return divide_tables({part: [table] for part, table in parts.items()}, "the rows", bad, columns)

    @classmethod
    def read_rows(  # type: ignore[override]
        cls, table: Table, bad: BadExamples, columns: str | None = None
    ) -> Sequence[AnswerExample]:
        """Return the examples of rows with image, question and answer; see `divide_tables`."""
        return examples_by_round(read_tables({"rows": [table]}, bad, columns)["rows"])

    @classmethod
    def load_part(
        cls, data_root: str | Path | None, part: str, on_bad_example: str = "raise", **options: Any
    ) -> Sequence[AnswerExample]:
        """Return a part; also those of `das_gym.tasks.answering.reading.load_answers_part`."""
        if part in PARTS:
            return super().load_part(data_root, part, on_bad_example, **options)
        return load_answers_part(data_root, part, on_bad_example)

    @classmethod
    def format_of(cls, root: Path) -> str:
        return detect_format(root)

    @classmethod
    def is_labelled(cls, examples: Sequence[AnswerExample]) -> bool:
        return any(example.answer for example in itertools.islice(examples, 100))

    def pairs(self, examples: Sequence[AnswerExample]) -> list[Prompt]:  # type: ignore[override]
        """Return each question with its answer, or with each of its options."""
        return [
            Prompt(e.question, e.images, answer, e.rounds, e.is_cut) for e in examples for answer in e.options or (e.answer,)
        ]

    def targets(self, examples: Sequence[AnswerExample]) -> dict[str, Tensor]:
        """Return the tokens of the answers, int64.

        `labels`, `prompt` and `lengths`, see `TokenTask`; `example` (prompts,), the example of each; `options` (examples,),
        the number of its prompts; `reference` (examples,), the prompt with the right answer.
        """
        encodings: list[Any] = [self.processor.encode(prompt) for prompt in self.pairs(examples)]  # type: ignore[attr-defined]
        tokens = [encoding.ids[encoding.answer :] for encoding in encodings]
        lengths = torch.tensor([len(each) for each in tokens])
        counts = torch.tensor([len(e.options) or 1 for e in examples])
        right = torch.tensor([e.options.index(e.answer) if e.options else 0 for e in examples])
        return {
            "labels": torch.cat(tokens),
            "prompt": torch.arange(len(tokens)).repeat_interleave(lengths),
            "lengths": lengths,
            "example": torch.arange(len(examples)).repeat_interleave(counts),
            "options": counts,
            "reference": counts.cumsum(0) - counts + right,
        }

    def shuffled_order(self, examples: Sequence[AnswerExample]) -> np.ndarray:
        """Return an order that mixes images, but keeps the questions about one together: they share its computation."""
        images = [tuple(image.key for image in e.images) or (e.key,) for e in examples]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(images))}
        places = np.random.default_rng(0).permutation(len(numbers))
        return np.argsort([places[numbers[key]] for key in images], kind="stable")

    def generation_prompt(self, example: AnswerExample) -> Prompt | None:
        return None if example.options else Prompt(example.question, example.images, None, example.rounds)

    def format_generated(self, example: AnswerExample, text: str) -> dict[str, Any]:
        """Return `answer` with `question_id`, as VQA's server takes it, or with `key` where that is missing."""
        known = {"key": example.key} if example.question_id is None else {"question_id": example.question_id}
        return {**known, "answer": text}

    def question(self, example: AnswerExample) -> str:
        """Return the last message of the user, without marks of images."""
        return example.question.replace(IMAGE_MARK, "").strip()

    def reference(self, example: AnswerExample) -> str:
        return example.answer

    def format_prediction(self, example: AnswerExample, prediction: Mapping[str, Any]) -> str:
        return str(prediction["answer" if example.options else "teacher_forced"])

    def group(self, example: AnswerExample) -> str:
        return example.kind

    def summary(self, examples: Sequence[AnswerExample], losses: np.ndarray, metrics: np.ndarray) -> dict[str, float]:
        """Return mean loss, and the share of right answers: overall and by kind (`kind/CLOSED`)."""
        groups: defaultdict[str, list[float]] = defaultdict(list)
        for example, metric in zip(examples, metrics.tolist(), strict=True):
            if example.kind:
                groups[f"kind/{example.kind}"].append(metric)
        by_kind = {name: sum(groups[name]) / len(groups[name]) for name in sorted(groups)}
        return {**super().summary(examples, losses, metrics), **by_kind}

    def open_ended(self, examples: Sequence[AnswerExample]) -> list[AnswerExample]:
        return [replace(e, options=()) for e in examples]

    def score_text(self, example: AnswerExample, text: str) -> float:
        return score_answer(example, text)

    def losses(self, logits: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Return the mean negative log-likelihood of the reference answer's tokens, (batch,), in nats."""
        return super().losses(logits, targets)[targets["reference"]]

    def metrics(self, logits: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Return 1 where the reference is the likeliest option, or, without options, the greedy answer; (batch,)."""
        options = targets["options"]
        # Without options, the greedy answer is right if no token of the reference is missed: it is teacher-forced.
        wrong = (logits.argmax(-1) != targets["labels"]).to(logits)
        missed = sum_by_prompt(wrong, targets)[targets["reference"]]
        likelihood = -sum_by_prompt(token_nats(logits, targets["labels"]), targets)
        # An option is as likely as its whole text: the sum over its tokens counts, not their mean.
        best = torch.full_like(options, -torch.inf, dtype=likelihood.dtype)
        best = best.scatter_reduce(0, targets["example"], likelihood, "amax")
        return torch.where(options > 1, likelihood[targets["reference"]] >= best, missed == 0).to(likelihood)

    def chance(self, examples: Sequence[AnswerExample]) -> float:
        """Return the mean of 1 / number of options, 0 for examples without options."""
        return sum(1 / len(e.options) for e in examples if e.options) / len(examples)

    def predictions(self, examples: Sequence[AnswerExample], logits: Tensor) -> list[dict[str, Any]]:
        """Return `key` with `answer`, the likeliest option; without options, with `teacher_forced`.

        That is the likeliest token at each place of the reference answer, decoded: the greedy answer if it is right, and
        otherwise an approximation of it.
        """
        targets = {name: t.to(logits.device) for name, t in self.targets(examples).items()}
        counts = targets["options"]
        likelihoods = (-sum_by_prompt(token_nats(logits, targets["labels"]), targets)).split(counts.tolist())
        tokens = logits.argmax(-1).split(targets["lengths"].tolist())
        decode: Any = self.processor.tokenizer.decode
        rows: list[dict[str, Any]] = []
        for example, options, first in zip(examples, likelihoods, (counts.cumsum(0) - counts).tolist(), strict=True):
            if example.options:
                rows.append({"key": example.key, "answer": example.options[int(options.argmax())]})
            else:
                text = decode(tokens[first].tolist(), skip_special_tokens=True).strip()
                rows.append({"key": example.key, "teacher_forced": text})
        return rows

    def divergences(self, logits: Tensor, full_logits: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Return KL(full model || subnet) of the next token, mean over the reference answer's tokens, (batch,), in nats."""
        return super().divergences(logits, full_logits, targets)[targets["reference"]]


def normalize_for_comparison(text: str) -> str:
    """Return an answer normalized as in VQA, except that `A`, which VQA removes as an article, becomes `a`."""
    return normalize_answer(text) or text.strip(" \t\n.,:;!?()\"'").lower() or text.strip()


def exact_match(answer: str, reference: str) -> float:
    """Return 1.0 if two answers are the same after normalization, else 0.0; an empty answer matches nothing."""
    given = normalize_for_comparison(answer)
    return float(bool(given) and given == normalize_for_comparison(reference))


def generated_vqa_accuracy(answer: str, answers: Sequence[str]) -> float:
    """Return VQA's official accuracy, 0..1, of a generated answer, which is normalized first; a blank answer is wrong."""
    accuracy = vqa_accuracy(normalize_answer(answer), answers)
    return accuracy if answer.strip() else 0.0


def chosen_option(generated: str, options: Sequence[str]) -> str | None:
    """Return the option that a generated text names, or None if it names none or several.

    Letters are found in `B`, `(B)`, `B. a dog` and `The answer is B.`; other options where the text is one of them, or
    has the words of exactly one of them; of `land` and `bare land` the longer one counts.
    """
    text = normalize_for_comparison(generated)
    words = {option: normalize_for_comparison(option) for option in options}
    same = [option for option in options if words[option] == text]
    if same:
        return same[0]
    if all(len(option) == 1 and option in LETTERS for option in options):
        match = _LETTER_FIRST.search(generated.strip()) or _LETTER_NAMED.search(generated)
        return match.group(1) if match and match.group(1) in options else None
    named = [o for o in options if words[o] and f" {words[o]} " in f" {text} "]
    longest = [o for o in named if not any(o != other and f" {words[o]} " in f" {words[other]} " for other in named)]
    return longest[0] if len(longest) == 1 else None


def score_answer(example: AnswerExample, generated: str) -> float:
    """Return the score, 0..1, of a generated answer.

    It is 1 if the reference option was chosen, where there are options; VQA's accuracy, where `ANNOTATORS` or more answered;
    else 1 if the answer matches the reference or one of the answers.
    """
    if example.options:
        chosen = chosen_option(generated, example.options)
        return float(chosen is not None and chosen == example.answer)
    if len(example.answers) >= ANNOTATORS:
        return generated_vqa_accuracy(generated, example.answers)
    return max(exact_match(generated, answer) for answer in (example.answer, *example.answers))
