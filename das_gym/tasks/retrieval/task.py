"""Image-text retrieval: which of 16 texts is true of an image?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from das_gym.data.splits import Splits
from das_gym.models.inputs import Pair
from das_gym.shapes.captions import shapes_captions_root
from das_gym.tasks.base import Gallery, Task, load_head
from das_gym.tasks.retrieval.captions import NUM_TEXTS, RetrievalExample
from das_gym.tasks.retrieval.files import TABLES, caption_files, load_captions


def build_rank_head(feature_size: int) -> nn.Sequential:
    """Return a linear layer to one score: (..., n, feature_size) to (..., n) logits."""
    linear = nn.Linear(feature_size, 1)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(linear, nn.Flatten(-2))


MATCHING_HEAD = "itm_score"
"""The image-text-matching head in checkpoints: row 0 of its logits is no match, row 1 a match."""


class RetrievalTask(Task):
    """Retrieval as METER and ViLT train for it: rank a true text before 15 false ones.

    Logits are scores of the 16 texts, the true one first. `das_gym.engine.ranking` measures the recall among thousands of
    texts with the same head.
    """

    name = "retrieval"
    pretrained_head = "rank_output"
    metric_name = "ranked_first"
    passes = NUM_TEXTS
    reward_examples = 64  # 1,024 pairs

    @classmethod
    def load_splits(cls, data_root: str | Path | None, on_bad_example: str = "raise") -> Splits[RetrievalExample]:
        """Read Karpathy's files, or arrow tables; None is Shapes-captions."""
        return load_captions(shapes_captions_root() if data_root is None else data_root, on_bad_example)

    @classmethod
    def format_of(cls, root: Path) -> str:
        """Return `Karpathy's captions` for a folder with his JSON files or with arrow tables."""
        return "Karpathy's captions" if caption_files(root) or TABLES.is_in(root) else ""

    def pairs(self, examples: Sequence[RetrievalExample]) -> list[Pair]:
        """Return each image with its 16 texts, the true one first."""
        return [Pair(text, example.image) for example in examples for text in example.texts]

    def question(self, example: RetrievalExample) -> str:
        """Ask which of the texts is true."""
        return f"Which of {len(example.texts)} texts is true of the image?"

    def reference(self, example: RetrievalExample) -> str:
        return example.texts[0]

    def format_prediction(self, example: RetrievalExample, prediction: Mapping[str, Any]) -> str:
        """Return the text with the highest score."""
        return example.texts[prediction["prediction"]]

    def targets(self, examples: Sequence[RetrievalExample]) -> dict[str, Tensor]:
        """Return `true`: (batch,) int64 zeros, the position of the true text."""
        return {"true": torch.zeros(len(examples), dtype=torch.long)}

    def build_head(self, feature_size: int, head_size: int | None = None) -> nn.Module:
        """Return a new rank output, which has no hidden layer."""
        del head_size
        return build_rank_head(feature_size)

    def init_head(self, head: nn.Module, heads: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Initialize from `rank_output`: the checkpoint's own, or the match row of its image-text-matching head."""
        if self.pretrained_head in heads:
            load_head(
                head, self.pretrained_head, {f"0.{name}": tensor for name, tensor in heads[self.pretrained_head].items()}
            )

    def losses(self, logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """Return the cross-entropy of the true text among the 16, (batch,), in nats: the ranking loss of METER and ViLT."""
        return F.cross_entropy(logits, targets["true"], reduction="none")

    def matching_loss(self, heads: Mapping[str, Mapping[str, Tensor]]) -> Callable[[Tensor], Tensor]:
        """Return `matching_losses` with the checkpoint's frozen `itm_score`; ValueError if it has none."""
        if MATCHING_HEAD not in heads:
            got = ", ".join(sorted(heads)) or "none"
            raise ValueError(f"`itm_weight` needs the head {MATCHING_HEAD} in the checkpoint: got {got}. Use `itm_weight=0`")
        head = heads[MATCHING_HEAD]
        return partial(matching_losses, weight=head["weight"], bias=head["bias"])

    def chance(self, examples: Sequence[RetrievalExample]) -> float:
        del examples
        return 1 / NUM_TEXTS

    def metrics(self, logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """Return 1 where the true text has a larger score than every other, else 0; (batch,)."""
        # Strictly larger: a diverged model, whose scores are all equal or NaN, ranks nothing first.
        is_true = F.one_hot(targets["true"], logits.shape[-1]).bool()
        return (logits[is_true] > logits.masked_fill(is_true, -torch.inf).amax(-1)).to(logits)

    @classmethod
    def gallery(cls, examples: Sequence[RetrievalExample], max_images: int | None = None) -> Gallery:
        """Return each image of the examples once, with all captions, in order; ValueError for `max_images` below 1."""
        if max_images is not None and max_images < 1:
            raise ValueError(f"wrong `max_images`: got {max_images}, expected 1 or more, or None for all")
        found = {example.image_id: example for example in examples}
        chosen = list(found.values())[:max_images]
        texts = [(number, text) for number, example in enumerate(chosen) for text in example.own]
        return Gallery(
            tuple(example.image for example in chosen),
            tuple(text for _, text in texts),
            np.array([number for number, _ in texts], dtype=np.int64),
        )


def matching_losses(pooled: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the cross-entropy of matching, (batch,), in nats: half of the true pair, half of the mean of the false pairs.

    The (batch * NUM_TEXTS, feature_size) features are example by example, the true text first.

    METER's code draws one pair per example at every step, a true one for half of them; this is its expected value. Its false
    pairs have another image, these another text.
    """
    logits = F.linear(pooled, weight.to(pooled), bias.to(pooled)).unflatten(0, (-1, NUM_TEXTS))
    no, yes = (-logits.log_softmax(-1)).unbind(-1)
    return (yes[:, 0] + no[:, 1:].mean(-1)) / 2
