"""Visual question answering: which of the data set's frequent answers is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from das_gym.data.processor import Processor
from das_gym.data.vqa_accuracy import soft_score, vqa_accuracy
from das_gym.data.vqav2 import VQAExample
from das_gym.tasks.base import Task


def build_vqa_head(feature_size: int, num_answers: int) -> nn.Sequential:
    """Linear, LayerNorm, GELU, Linear: (batch, feature_size) to (batch, num_answers) logits."""
    first, last = nn.Linear(feature_size, feature_size), nn.Linear(feature_size, num_answers)
    for layer in (first, last):
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.LayerNorm(feature_size), nn.GELU(), last)


class VQATask(Task):
    """VQA as VQAv2 defines it: soft scores to train on, the official accuracy to report.

    Args:
        processor: Makes batches for the VLP.
        answers: The answer vocabulary; logits are in its order.
    """

    name = "vqa"

    def __init__(self, processor: Processor, answers: Sequence[str]) -> None:
        self.processor = processor
        self.answers = tuple(answers)
        self._index = {answer: i for i, answer in enumerate(self.answers)}

    def inputs(self, examples: Sequence[VQAExample]) -> dict[str, Tensor]:
        """`image`, `input_ids` and `attention_mask` of the examples."""
        return self.processor([e.image_path for e in examples], [e.question for e in examples])

    def targets(self, examples: Sequence[VQAExample]) -> dict[str, Tensor]:
        """`scores`: soft scores to train on; `accuracy`: what each answer would earn; both (batch, answers) float32."""
        scores = torch.zeros(len(examples), len(self.answers))
        accuracy = torch.zeros_like(scores)
        for row, example in enumerate(examples):
            for answer, count in Counter(example.answers).items():
                column = self._index.get(answer)
                if column is not None:
                    scores[row, column] = soft_score(count)
                    accuracy[row, column] = vqa_accuracy(answer, example.answers)
        return {"scores": scores, "accuracy": accuracy}

    def build_head(self, feature_size: int) -> nn.Module:
        """A new head for this answer vocabulary."""
        return build_vqa_head(feature_size, len(self.answers))

    def losses(self, logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """(batch,) binary cross-entropy summed over answers, in nats: METER's VQA loss before its mean."""
        return F.binary_cross_entropy_with_logits(logits, targets["scores"].to(logits), reduction="none").sum(-1)

    def metrics(self, logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """(batch,) official VQA accuracy of the answer with the largest logit, 0..1."""
        return targets["accuracy"].to(logits).gather(-1, logits.argmax(-1, keepdim=True)).squeeze(-1)

    def answerable(self, examples: Sequence[VQAExample]) -> float:
        """Share of the examples (0..1) with at least one answer in the vocabulary."""
        return sum(any(a in self._index for a in e.answers) for e in examples) / max(len(examples), 1)
