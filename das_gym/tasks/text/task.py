"""Language modelling: the model predicts every token of a text from those before it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from das_gym.data.splits import Splits
from das_gym.models.inputs import Passage
from das_gym.tasks.base import Task
from das_gym.tasks.text.documents import FORMATS, load_documents
from das_gym.tasks.text.windows import WindowExample, split_into_windows
from das_gym.tasks.tokens import mean_by, token_nats

DEFAULT_CONTEXT = 512
"""Tokens of a window."""

PAIRS_OF_A_WINDOW = 32
"""A window takes the memory of this many short prompts: it has logits of the full vocabulary at every token."""


class TextTask(Task):
    """Language modelling. The loss is the mean negative log-likelihood of a window's tokens, in nats a token.

    An example is a window of `context` tokens of a document; every token but its first is predicted. The metric is the share
    of tokens that are the likeliest ones; `summary` adds the perplexity, exp(mean loss).
    """

    name = "text"
    metric_name = "token_accuracy"
    reward_examples = 64

    @classmethod
    def load_splits(
        cls,
        data_root: str | Path | None,
        on_bad_example: str = "raise",
        columns: str | None = None,
        context: int | None = None,
        tokenizer: Any = None,
    ) -> Splits[WindowExample]:
        """Split documents into windows, see `load_documents` and `split_into_windows`; ValueError without data or tokenizer.

        `columns` is the name of the column of the text, `context` the tokens of a window (None is `DEFAULT_CONTEXT`), and
        `tokenizer` the model's, which is needed.
        """
        if data_root is None:
            raise ValueError(f"`data_root` is missing: the task text has no bundled data. Give {FORMATS}.")
        if tokenizer is None:
            raise ValueError("`tokenizer` is missing: windows of text have a number of tokens. Give the model's.")
        documents = load_documents(data_root, on_bad_example, columns)
        size = context or DEFAULT_CONTEXT
        parts = {name: getattr(documents, name) for name in ("train", "reward", "test")}
        windows = {name: split_into_windows(part, tokenizer, size) for name, part in parts.items()}
        short = [name for name, part in windows.items() if not len(part)]
        if short:
            raise ValueError(f"{data_root} holds no text of two or more tokens in {' and '.join(short)}")
        return Splits(windows["train"], windows["reward"], windows["test"], documents.left_out)

    @classmethod
    def examples_for_pairs(cls, pairs: int) -> int:
        """Return the number of windows, at least 1, that take the memory of some short prompts."""
        return max(pairs // PAIRS_OF_A_WINDOW, 1)

    def pairs(self, examples: Sequence[WindowExample]) -> list[Passage]:  # type: ignore[override]
        """Return each window, whose tokens are all predicted but the first."""
        return [Passage(e.ids) for e in examples]

    def targets(self, examples: Sequence[WindowExample]) -> dict[str, Tensor]:
        """Return `labels`, (tokens,) int64, the predicted tokens of all windows, and `prompt`, the window of each."""
        lengths = torch.tensor([len(e.ids) - 1 for e in examples])
        return {
            "labels": torch.tensor([token for e in examples for token in e.ids[1:]]),
            "prompt": torch.arange(len(examples)).repeat_interleave(lengths),
        }

    def build_head(self, feature_size: int, head_size: int | None = None) -> nn.Module:
        """Raise TypeError: only the model's own head over its vocabulary predicts tokens."""
        raise TypeError("task text needs a model with the model's own head over its vocabulary")

    def losses(self, logits: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Return the mean negative log-likelihood of each window's tokens, (batch,), in nats a token."""
        return _mean(token_nats(logits, targets["labels"]), targets)

    def metrics(self, logits: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Return the share of each window's tokens that are the likeliest ones, (batch,), 0..1."""
        right = logits.argmax(-1) == targets["labels"]
        return _mean(right.to(torch.float64 if logits.dtype == torch.float64 else torch.float32), targets)

    def divergences(self, logits: Tensor, full_logits: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Return KL(full model || subnet) of the next token, mean over each window's tokens, (batch,), in nats."""
        return _mean(super().divergences(logits, full_logits, targets), targets)

    def predictions(self, examples: Sequence[WindowExample], logits: Tensor) -> list[dict[str, Any]]:
        """Return `key`, the number of predicted `tokens`, and their mean `loss` in nats."""
        targets = {name: t.to(logits.device) for name, t in self.targets(examples).items()}
        losses = self.losses(logits, targets).tolist()
        return [{"key": e.key, "tokens": len(e.ids) - 1, "loss": x} for e, x in zip(examples, losses, strict=True)]

    def open_ended(self, examples: Sequence[WindowExample]) -> list[WindowExample]:
        return list(examples)

    def generation_prompt(self, example: WindowExample) -> Passage:
        """Return the window as the beginning of a text to continue."""
        return Passage(example.ids, start=len(example.ids))

    def format_generated(self, example: WindowExample, text: str) -> dict[str, Any]:
        """Return `key` and the `continuation`."""
        return {"key": example.key, "continuation": text}

    def question(self, example: WindowExample) -> str:
        text: str = self.processor.tokenizer.decode(list(example.ids))
        return text

    def format_prediction(self, example: WindowExample, prediction: Mapping[str, Any]) -> str:
        return f"{prediction['loss']:.3f} nats a token"

    def summary(self, examples: Sequence[WindowExample], losses: np.ndarray, metrics: np.ndarray) -> dict[str, float]:
        """Return the mean `loss` in nats a token, the `token_accuracy`, and the `perplexity`, exp(loss)."""
        numbers = super().summary(examples, losses, metrics)
        return {**numbers, "perplexity": math.exp(min(numbers["loss"], 700.0))}  # the largest float is e ** 709


def _mean(values: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
    """Return the means of (tokens,) values by window."""
    return mean_by(values, targets["prompt"], int(targets["prompt"][-1]) + 1)
