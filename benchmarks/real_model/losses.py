"""The losses of training the vision-language model, and the heads that only training needs.

Besides the words of the answers, the model predicts the color, shape and center of the object that each image token shows
and its pixels, part of the way up the decoder how many objects a name in the question fits and where the object is, and
further up the center of the object that is the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from das_gym.adapt.training import StepResult
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.conversations.batches import IGNORE, PATCH_SIZE, ConversationBatch, ImageBatch
from benchmarks.conversations.models import Features, words_losses
from das_gym.shapes.scenes import COLORS, MAX_OBJECTS, SHAPES

IMAGE_WEIGHTS = {"color": 1.0, "shape": 1.0, "center": 10.0, "silhouette": 3.0}
WEIGHTS = {"words": 1.0, "counts": 0.3, "places": 5.0, "targets": 5.0, "image": 0.5}

MENTION_LAYER, TARGET_LAYER = 12, 20
"""Decoder layers after which named objects, and the object that is the answer, are looked for."""


class Heads(nn.Module):
    """Reads hidden states of a width."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.color = nn.Linear(size, len(COLORS) + 1)
        self.shape = nn.Linear(size, len(SHAPES) + 1)
        self.center = nn.Linear(size, 2)
        self.silhouette = nn.Linear(size, PATCH_SIZE**2)
        self.count = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, MAX_OBJECTS + 1))
        self.place = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, 2))
        self.target = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, 2))


def image_losses(heads: Heads, patches: Tensor, batch: ImageBatch) -> StepResult:
    """Return losses of the object at every image token and of the pixels that show it."""
    return {
        "silhouette": F.binary_cross_entropy_with_logits(heads.silhouette(patches), batch.silhouettes),
        "center": F.mse_loss(heads.center(patches), batch.centers),
        "color": F.cross_entropy(heads.color(patches).flatten(0, 1), batch.colors.flatten()),
        "shape": F.cross_entropy(heads.shape(patches).flatten(0, 1), batch.shapes.flatten()),
    }


def losses_of(model: Any, heads: Heads, read: Features, batch: ConversationBatch) -> StepResult:
    """Return all losses, their weighted sum as `loss`, and the share of answers' tokens that come out right as `right`."""
    named = batch.counts != IGNORE
    mentioned = read.states[MENTION_LAYER]
    words = words_losses(model, read, batch)
    seen = image_losses(heads, read.patches, batch.images)
    losses = {
        "words": words["words"],
        "counts": F.cross_entropy(heads.count(mentioned[named]), batch.counts[named]),
        "places": masked_mse(heads.place(mentioned), batch.places),
        "targets": masked_mse(heads.target(read.states[TARGET_LAYER]), batch.targets),
        "image": weighted(seen, IMAGE_WEIGHTS),
    }
    return {"loss": weighted(losses, WEIGHTS), **losses, **seen, "right": words["right"]}


def masked_mse(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Return the squared error where the target is not NaN."""
    known = ~wanted.isnan()
    return F.mse_loss(predicted[known], wanted[known])


def weighted(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the weighted sum of losses."""
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
