"""Answering: the model says the answer in words of its own, token by token."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from das_gym.data.splits import Splits
from das_gym.models.inputs import Prompt
from das_gym.tasks.answering.examples import AnswerExample
from das_gym.tasks.answering.metrics import score_answer, summary_by_kind
from das_gym.tasks.answering.prompts import IMAGE_MARK
from das_gym.tasks.answering.reading import load_answers, load_answers_part
from das_gym.tasks.base import PARTS, Task


class AnsweringTask(Task):
    """Generated answers: their likelihood is the loss, and being said, or being the likeliest option, is right.

    An example is a prompt, or one an option where it gives options. Logits are those of the answers' tokens, prompt by
    prompt, (tokens, vocabulary): all is teacher-forced, so that greedy generation says an answer if and only if each of its
    tokens is the likeliest.
    """

    name = "answering"
    metric_name = "exact_match"

    @classmethod
    def load_splits(cls, data_root: str | Path | None, on_bad_example: str = "raise") -> Splits[AnswerExample]:
        """Any format of `das_gym.tasks.answering.reading`; None is Shapes-VQA."""
        return load_answers(data_root, on_bad_example)

    @classmethod
    def load_part(cls, data_root: str | Path | None, part: str, on_bad_example: str = "raise") -> Sequence[AnswerExample]:
        """As `Task.load_part`; also the parts of `das_gym.tasks.answering.reading.load_answers_part`."""
        if part in PARTS:
            return super().load_part(data_root, part, on_bad_example)
        return load_answers_part(data_root, part, on_bad_example)

    @classmethod
    def is_labelled(cls, examples: Sequence[AnswerExample]) -> bool:
        """Whether reference answers are there."""
        return any(example.answer for example in itertools.islice(examples, 100))

    def pairs(self, examples: Sequence[AnswerExample]) -> list[Prompt]:  # type: ignore[override]
        """Each question with its answer, or with each of its options."""
        return [Prompt(e.question, e.images, said, e.rounds) for e in examples for said in e.options or (e.answer,)]

    def targets(self, examples: Sequence[AnswerExample]) -> dict[str, Tensor]:
        """What the answers' tokens are.

        Returns:
            `labels` (tokens,) int64; `prompt` (tokens,) int64, the prompt of each; `example` (prompts,) int64, the example
            of each; `reference` (examples,) int64, the prompt with the right answer.
        """
        said = [[int(token) for token in self._answer(prompt)] for prompt in self.pairs(examples)]
        counts = [len(e.options) or 1 for e in examples]
        firsts = [sum(counts[:row]) for row in range(len(counts))]
        place = [e.options.index(e.answer) if e.options else 0 for e in examples]
        return {
            "labels": torch.tensor([token for tokens in said for token in tokens]),
            "prompt": torch.tensor([number for number, tokens in enumerate(said) for _ in tokens]),
            "example": torch.tensor([row for row, count in enumerate(counts) for _ in range(count)]),
            "reference": torch.tensor(firsts) + torch.tensor(place),
        }

    def _answer(self, prompt: Prompt) -> Tensor:
        encoding: Any = self.processor.encode(prompt)  # type: ignore[attr-defined]
        answer: Tensor = encoding.ids[encoding.answer :]
        return answer

    def order(self, examples: Sequence[AnswerExample]) -> np.ndarray:
        """(len(examples),) int64: pictures are mixed, and questions on the same pictures stay together.

        They share what the model makes of the pictures, under every mask.
        """
        pictures = [tuple(image.key for image in e.images) or (e.key,) for e in examples]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(pictures))}
        places = np.random.default_rng(0).permutation(len(numbers))
        return np.argsort([places[numbers[key]] for key in pictures], kind="stable")

    def generation_prompt(self, example: AnswerExample) -> Prompt | None:
        """The question, its answer unknown, unless there are options."""
        return None if example.options else Prompt(example.question, example.images, None, example.rounds)

    def format_generated(self, example: AnswerExample, text: str) -> dict[str, Any]:
        """`question_id`, as VQA's server takes it, or `key` where the data set's questions have no such; and `answer`."""
        known = {"key": example.key} if example.question_id is None else {"question_id": example.question_id}
        return {**known, "answer": text}

    def question(self, example: AnswerExample) -> str:
        """What the user says last, without the marks of pictures."""
        return example.question.replace(IMAGE_MARK, "").strip()

    def reference(self, example: AnswerExample) -> str:
        """The reference answer."""
        return example.answer

    def format_prediction(self, example: AnswerExample, prediction: Mapping[str, Any]) -> str:
        """The likeliest option; where there is nothing to choose from, what `predictions` calls `teacher_forced`."""
        return str(prediction["answer" if example.options else "teacher_forced"])

    def group(self, example: AnswerExample) -> str:
        """The data set's own kind."""
        return example.kind

    def summary(self, examples: Sequence[AnswerExample], losses: np.ndarray, metrics: np.ndarray) -> dict[str, float]:
        """Share of right answers over all, and of each kind that the data set knows (`kind/CLOSED`); mean loss."""
        kinds = {name: mean for name, mean in summary_by_kind(examples, metrics).items() if name != "overall"}
        return {**super().summary(examples, losses, metrics), **kinds}

    def open_ended(self, examples: Sequence[AnswerExample]) -> list[AnswerExample]:
        """The examples without their options."""
        return [replace(e, options=()) for e in examples]

    def score_text(self, example: AnswerExample, text: str) -> float:
        """Whether it is the reference, or names the right option; VQA's accuracy where annotators answered."""
        return score_answer(example, text)

    def build_head(self, feature_size: int, head_size: int | None = None) -> nn.Module:
        """There is none to be built: the model's own says words.

        Raises:
            TypeError: always.
        """
        raise TypeError("answers are said by the model's own head over its vocabulary: this model has none")

    def losses(self, logits: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """(batch,) mean negative log-likelihood of the reference answer's tokens, in nats."""
        return _mean_by(self._nats(logits, targets), targets)[targets["reference"]]

    def metrics(self, logits: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """(batch,) 1 where the reference is the likeliest option, or, without options, what greedy generation says."""
        options = torch.bincount(targets["example"])
        wrong = (logits.argmax(-1) != targets["labels"]).to(logits)
        missed = _sum_by(wrong, targets)[targets["reference"]]
        likelihood = -_sum_by(self._nats(logits, targets), targets)
        best = torch.full_like(options, -torch.inf, dtype=likelihood.dtype)
        best = best.scatter_reduce(0, targets["example"], likelihood, "amax")
        return torch.where(options > 1, likelihood[targets["reference"]] >= best, missed == 0).to(likelihood)

    def predictions(self, examples: Sequence[AnswerExample], logits: Tensor) -> list[dict[str, Any]]:
        """`key`, and `answer`, the likeliest option; where there is nothing to choose from, `teacher_forced` instead.

        That is the likeliest token at each place of the reference answer, decoded: what greedy generation says if it is
        right, and else no more than a hint at it.
        """
        targets = {name: t.to(logits.device) for name, t in self.targets(examples).items()}
        counts = torch.bincount(targets["example"])
        likelihoods = (-_sum_by(self._nats(logits, targets), targets)).split(counts.tolist())
        tokens = logits.argmax(-1).split(torch.bincount(targets["prompt"]).tolist())
        decode: Any = self.processor.tokenizer.decode
        rows: list[dict[str, Any]] = []
        for example, options, first in zip(examples, likelihoods, (counts.cumsum(0) - counts).tolist(), strict=True):
            if example.options:
                rows.append({"key": example.key, "answer": example.options[int(options.argmax())]})
            else:
                said = decode(tokens[first].tolist(), skip_special_tokens=True).strip()
                rows.append({"key": example.key, "teacher_forced": said})
        return rows

    def divergences(self, logits: Tensor, full_logits: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """(batch,) KL(full model || subnet) of the next token, mean over the reference answer's tokens, in nats."""
        return _mean_by(super().divergences(logits, full_logits, targets), targets)[targets["reference"]]

    @staticmethod
    def _nats(logits: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """(tokens,) negative log-likelihood of each token."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return F.cross_entropy(logits, targets["labels"], reduction="none")


def _sum_by(values: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
    """(prompts,) sums of (tokens,) values."""
    return values.new_zeros(len(targets["example"])).index_add(0, targets["prompt"], values)


def _mean_by(values: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
    """(prompts,) means of (tokens,) values."""
    return _sum_by(values, targets) / torch.bincount(targets["prompt"])
