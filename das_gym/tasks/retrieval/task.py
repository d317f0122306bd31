"""Image-text retrieval: which of 16 texts is true of an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from das_gym.data.arrow import is_arrow
from das_gym.data.splits import Splits
from das_gym.models.inputs import Pair
from das_gym.shapes.captions import shapes_captions_root
from das_gym.tasks.base import Gallery, Task, load_head
from das_gym.tasks.retrieval.arrow import FILES, load_arrow_captions
from das_gym.tasks.retrieval.captions import NUM_TEXTS, RetrievalExample
from das_gym.tasks.retrieval.karpathy import load_flickr30k


def build_rank_head(feature_size: int) -> nn.Sequential:
    """Linear to one score: (..., n, feature_size) to (..., n) logits."""
    linear = nn.Linear(feature_size, 1)
    nn.init.normal_(linear.weight, std=0.02)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(linear, nn.Flatten(-2))


MATCHING_HEAD = "itm_score"
"""What checkpoints call the head that tells whether text and image match: row 0 of its logits says no, row 1 yes."""


class RetrievalTask(Task):
    """Retrieval as METER and ViLT train for it: rank a true text before 15 false ones.

    Logits are scores of the 16 texts, the true one first. How well one text is found among thousands is measured by
    `das_gym.engine.ranking`, with the same head.
    """

    name = "retrieval"
    pretrained_head = "rank_output"
    metric_name = "ranked_first"
    passes = NUM_TEXTS
    reward_examples = 64  # 1,024 pairs

    @classmethod
    def load_splits(cls, data_root: str | Path | None, on_bad_example: str = "raise") -> Splits[RetrievalExample]:
        """Karpathy's files, or arrow tables; None is Shapes-captions."""
        root = shapes_captions_root() if data_root is None else data_root
        load = load_arrow_captions if is_arrow(root, FILES) else load_flickr30k
        return load(root, on_bad_example)

    def pairs(self, examples: Sequence[RetrievalExample]) -> list[Pair]:
        """Each image with its 16 texts, the true one first."""
        return [Pair(text, example.image) for example in examples for text in example.texts]

    def question(self, example: RetrievalExample) -> str:
        """Which of the texts is true."""
        return f"Which of {len(example.texts)} texts is true of the picture?"

    def reference(self, example: RetrievalExample) -> str:
        """The true text."""
        return example.texts[0]

    def format_prediction(self, example: RetrievalExample, prediction: Mapping[str, Any]) -> str:
        """The text with the highest score."""
        return example.texts[prediction["prediction"]]

    def targets(self, examples: Sequence[RetrievalExample]) -> dict[str, Tensor]:
        """`true`: (batch,) int64 zeros, the position of the true text."""
        return {"true": torch.zeros(len(examples), dtype=torch.long)}

    def build_head(self, feature_size: int, head_size: int | None = None) -> nn.Module:
        """A new rank output, which has no inside."""
        del head_size
        return build_rank_head(feature_size)

    def init_head(self, head: nn.Module, heads: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Start a new head from the checkpoint's rank output, as the reference does.

        Args:
            head: One of `build_head`; stays as it is where the checkpoint has nothing for it.
            heads: `das_gym.models.checkpoints.Loaded.heads`; its `rank_output` is the checkpoint's own, or the row of its
                image-text-matching head that stands for a match.
        """
        if self.pretrained_head in heads:
            load_head(
                head, self.pretrained_head, {f"0.{name}": tensor for name, tensor in heads[self.pretrained_head].items()}
            )

    def losses(self, logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """(batch,) cross-entropy of the true text among the 16, in nats: METER's and ViLT's ranking loss."""
        return F.cross_entropy(logits, targets["true"], reduction="none")

    def matching_loss(self, heads: Mapping[str, Mapping[str, Tensor]]) -> Callable[[Tensor], Tensor]:
        """By the checkpoint's `itm_score`, which stays as it is, see `matching_losses`.

        Raises:
            ValueError: the checkpoint has none.
        """
        if MATCHING_HEAD not in heads:
            raise ValueError(
                f"itm_weight is above 0, and the checkpoint has no image-text-matching head ({MATCHING_HEAD}), only "
                f"{', '.join(sorted(heads)) or 'none'}: use itm_weight=0, or a pre-training checkpoint"
            )
        head = heads[MATCHING_HEAD]
        return partial(matching_losses, weight=head["weight"], bias=head["bias"])

    def metrics(self, logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """(batch,) 1 where the true text has a larger score than every other, else 0."""
        is_true = F.one_hot(targets["true"], logits.shape[-1]).bool()
        return (logits[is_true] > logits.masked_fill(is_true, -torch.inf).amax(-1)).to(logits)

    @classmethod
    def gallery(cls, examples: Sequence[RetrievalExample], max_images: int | None = None) -> Gallery:
        """Each image of the examples once, with all of its captions, in order."""
        if max_images is not None and max_images < 1:
            raise ValueError(f"max_images={max_images} is not allowed; use 1 or more, or None for all images")
        found = {example.image_id: example for example in examples}
        chosen = list(found.values())[:max_images]
        texts = [(number, text) for number, example in enumerate(chosen) for text in example.own]
        return Gallery(
            tuple(example.image for example in chosen),
            tuple(text for _, text in texts),
            np.array([number for number, _ in texts], dtype=np.int64),
        )


def matching_losses(pooled: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(batch,) cross-entropy of whether text and image match, in nats: half of the true pair, half of the false ones' mean.

    METER's code draws one pair an example anew at every step, a true one for half of them; this is what that comes to on
    average. Its false pairs have another image, these another text.

    Args:
        pooled: (batch * NUM_TEXTS, feature_size), example by example, the true text first.
        weight: (2, feature_size), of the head.
        bias: (2,), likewise.
    """
    logits = F.linear(pooled, weight.to(pooled), bias.to(pooled)).unflatten(0, (-1, NUM_TEXTS))
    no, yes = (-logits.log_softmax(-1)).unbind(-1)
    return (yes[:, 0] + no[:, 1:].mean(-1)) / 2
