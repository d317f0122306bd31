"""Multiple choice: the model chooses the option that is the likeliest text after the question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.rnn import pad_sequence

from das_gym.data.splits import Splits
from das_gym.models.inputs import Passage, Prompt
from das_gym.tasks.answering.examples import AnswerExample
from das_gym.tasks.answering.task import AnsweringTask
from das_gym.tasks.choices.files import FORMATS, load_choices
from das_gym.tasks.text.windows import beginning_of
from das_gym.tasks.tokens import mean_by, sum_by, token_nats


class ChoicesTask(AnsweringTask):
    """Multiple choice by likelihood. The loss is -log of the right option's share of the options' likelihoods, in nats.

    The metric `acc` is 1 where the right option's tokens have the largest log-likelihood in sum, `acc_norm` where that sum
    divided by the option's characters is the largest: the metrics of EleutherAI's lm-evaluation-harness.

    A text model reads the question, a space and the option, without a chat template, as the harness has it by default. A
    question that ends with a question mark becomes `Question: ... Answer:`, as in the harness's ARC. A model that sees
    images is asked by its chat template, and the token that ends an answer counts.
    """

    name = "choices"
    metric_name = "acc"
    generates = False

    @classmethod
    def load_splits(  # type: ignore[override]
        cls, data_root: str | Path | None, on_bad_example: str = "raise"
    ) -> Splits[AnswerExample]:
        """Read any of `das_gym.tasks.choices.files.FORMATS`; ValueError without `data_root`."""
        if data_root is None:
            raise ValueError(f"`data_root` is missing: the task choices has no bundled data. Give {FORMATS}.")
        return load_choices(data_root, on_bad_example)

    @classmethod
    def load_part(
        cls, data_root: str | Path | None, part: str, on_bad_example: str = "raise", **options: Any
    ) -> Sequence[AnswerExample]:
        """Return a part, see `Task.load_part`."""
        return super(AnsweringTask, cls).load_part(data_root, part, on_bad_example, **options)

    @classmethod
    def examples_for_pairs(cls, pairs: int) -> int:
        """Return a quarter as many examples, at least 1: they have several options."""
        return max(pairs // 4, 1)

    def pairs(self, examples: Sequence[AnswerExample]) -> list[Prompt]:  # type: ignore[override]
        """Return each question with each of its options as the answer, example by example."""
        if self.processor.takes_images:  # type: ignore[attr-defined]
            return [Prompt(e.question, e.images, option) for e in examples for option in e.options]
        return [self._passage(e, option) for e in examples for option in e.options]  # type: ignore[misc]

    def _passage(self, example: AnswerExample, option: str) -> Passage:
        """Return the tokens of a question and an option; those after the tokens of the question are predicted."""
        if example.images:
            raise ValueError(f"{example.key}: the question has an image, but the model reads only text")
        asked = f"Question: {example.question}\nAnswer:" if example.question.endswith("?") else example.question
        tokenizer = self.processor.tokenizer
        # The harness's way: the whole is tokenized, since a tokenizer may join the end of one part with the other.
        before, whole = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (asked, f"{asked} {option}"))
        begin = beginning_of(tokenizer)
        return Passage((*begin, *whole), start=len(begin) + min(len(before), len(whole) - 1))

    def targets(self, examples: Sequence[AnswerExample]) -> dict[str, Tensor]:
        """Return those of `AnsweringTask`, with the place of the right option and the lengths of all options.

        `right` (batch,) int64; `characters` (batch, options) int64, 1 where an example has fewer options.
        """
        lengths = [torch.tensor([len(option) for option in e.options]) for e in examples]
        return {
            **super().targets(examples),
            "right": torch.tensor([e.options.index(e.answer) for e in examples]),
            "characters": pad_sequence(lengths, batch_first=True, padding_value=1),
        }

    def open_ended(self, examples: Sequence[AnswerExample]) -> list[AnswerExample]:
        """Return the examples with the right option alone, whose tokens recovery trains on."""
        return [replace(e, options=(e.answer,)) for e in examples]

    def generation_prompt(self, example: AnswerExample) -> Any:
        """Return the question of an example of `open_ended`; None where there are options."""
        if len(example.options) > 1:
            return None
        (pair,) = self.pairs([example])
        return replace(pair, answer=None) if isinstance(pair, Prompt) else Passage(pair.ids[: pair.start], pair.start)

    def losses(self, logits: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Return -log of the right option's share of the options' likelihoods, (batch,), in nats.

        Of an example of `open_ended`, with one option, it is the mean negative log-likelihood of its tokens.
        """
        nats = token_nats(logits, targets["labels"])
        among = F.cross_entropy(self._likelihoods(nats, targets), targets["right"], reduction="none")
        alone = mean_by(nats, targets["prompt"], len(targets["example"]))[targets["reference"]]
        return torch.where(torch.bincount(targets["example"]) > 1, among, alone)

    def metrics(self, logits: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Return 1 where the right option has the largest likelihood, else 0; (batch,)."""
        likelihoods = self._likelihoods(token_nats(logits, targets["labels"]), targets)
        return (likelihoods.argmax(-1) == targets["right"]).to(likelihoods)

    def other_metrics(self, logits: Tensor, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `acc_norm`, (batch,): 1 where the right option has the largest likelihood per character, else 0."""
        likelihoods = self._likelihoods(token_nats(logits, targets["labels"]), targets)
        best = (likelihoods / targets["characters"]).argmax(-1)
        return {"acc_norm": (best == targets["right"]).to(likelihoods)}

    def predictions(self, examples: Sequence[AnswerExample], logits: Tensor) -> list[dict[str, Any]]:
        """Return `key`, `answer` (the likeliest option) and `log_likelihoods` of all options, in nats."""
        targets = {name: t.to(logits.device) for name, t in self.targets(examples).items()}
        likelihoods = self._likelihoods(token_nats(logits, targets["labels"]), targets)
        rows = []
        for example, own in zip(examples, likelihoods, strict=True):
            answer = example.options[int(own.argmax())]
            rows.append({"key": example.key, "answer": answer, "log_likelihoods": own[: len(example.options)].tolist()})
        return rows

    def format_prediction(self, example: AnswerExample, prediction: Mapping[str, Any]) -> str:
        return str(prediction["answer"])

    def format_generated(self, example: AnswerExample, text: str) -> dict[str, Any]:
        """Raise TypeError: options are chosen, not generated."""
        raise self._not_generated(example, text)

    @staticmethod
    def _likelihoods(nats: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Return the log-likelihood of each option, (batch, options), -inf where an example has fewer options."""
        sums = -sum_by(nats, targets["prompt"], len(targets["example"]))
        counts = torch.bincount(targets["example"]).tolist()
        return pad_sequence(sums.split(counts), batch_first=True, padding_value=-torch.inf)
