"""Losses for answering in words: the answer tokens, and the positions of the objects in the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from das_gym.adapt.training import StepResult
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.pretrain.batches import IGNORE
from benchmarks.pretrain.captions import PATCH_SIZE
from benchmarks.pretrain.conversations import ConversationBatch, TokenBatch
from benchmarks.pretrain.family import AnsweringRecipe
from benchmarks.pretrain.losses import PretrainHeads, masked_mse, patch_losses, weighted
from das_gym.models.transformers.recording import cache_name
from das_gym.shapes.scenes import MAX_OBJECTS

IMAGE_TOKEN_WEIGHTS = {"color": 1.0, "shape": 1.0, "center": 10.0, "silhouette": 3.0}
WEIGHTS = {"words": 1.0, "counts": 0.3, "places": 5.0, "targets": 5.0, "image": 0.5}
"""Of the losses of images, and of those of conversations."""


class ConversationHeads(nn.Module):
    """The heads that only pre-training needs."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.patches = PretrainHeads(size, size, 1)
        self.silhouette = nn.Linear(size, PATCH_SIZE**2)
        self.count = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, MAX_OBJECTS + 1))
        self.place = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, 2))
        self.target = nn.Sequential(nn.LayerNorm(size), nn.Linear(size, 2))

    def dense(self) -> nn.Module:
        """The heads of `image_token_losses`."""
        return nn.ModuleList((self.patches.dense(), self.silhouette))


@dataclass(frozen=True)
class ConversationFeatures:
    """Inputs of the losses.

    Attributes:
        patches: (batch, image tokens, size): the image as the decoder gets it.
        states: By decoder layer, (batch, tokens, size): what goes into it.
        last: (batch, tokens, size): what the language modelling head reads.
    """

    patches: Tensor
    states: Sequence[Tensor]
    last: Tensor


def features(recipe: AnsweringRecipe, model: Any, batch: ConversationBatch) -> ConversationFeatures:
    """Run the decoder once over the images, and once over all that is asked about them."""
    patches = recipe.image_tokens(model, batch.images.scenes.image)
    decoder, embeddings = model.get_decoder(), model.get_input_embeddings()
    prefix = embeddings(batch.prefix_ids)
    is_image = (batch.prefix_ids == model.config.image_token_id)[..., None]
    name = cache_name(type(decoder).forward)
    cache = decoder(inputs_embeds=prefix.masked_scatter(is_image, patches), use_cache=True)[name]
    cache.batch_select_indices(batch.rows)
    output = decoder(
        inputs_embeds=embeddings(batch.input_ids),
        attention_mask=batch.attention_mask,
        **{name: cache},
        use_cache=True,
        output_hidden_states=True,
    )
    return ConversationFeatures(patches, output.hidden_states, output.last_hidden_state)


def words_losses(model: Any, read: ConversationFeatures, batch: ConversationBatch) -> StepResult:
    """Return the cross-entropy of the answers' words, and the share of them that come out right."""
    said = batch.labels != IGNORE
    logits = model.lm_head(read.last[said])
    right = (logits.detach().argmax(-1) == batch.labels[said]).float().mean()
    return {"words": F.cross_entropy(logits, batch.labels[said]), "right": right}


def image_token_losses(heads: ConversationHeads, patches: Tensor, batch: TokenBatch) -> StepResult:
    """Return losses of the object at every image token and of the pixels that show it, and as `loss` their sum."""
    losses = {
        "silhouette": F.binary_cross_entropy_with_logits(heads.silhouette(patches), batch.silhouettes),
        **patch_losses(heads.patches, patches, batch.scenes),
    }
    return {"loss": weighted(losses, IMAGE_TOKEN_WEIGHTS), **losses}


def conversation_losses(
    recipe: AnsweringRecipe, model: Any, heads: ConversationHeads, batch: ConversationBatch
) -> StepResult:
    """Return all losses, their weighted sum as `loss`, and the share of answers' tokens that come out right as `right`."""
    read, named = features(recipe, model, batch), batch.counts != IGNORE
    mentions, targets = read.states[recipe.mention_layer], read.states[recipe.target_layer]
    seen, words = image_token_losses(heads, read.patches, batch.images), words_losses(model, read, batch)
    losses = {
        "words": words["words"],
        "counts": F.cross_entropy(heads.count(mentions[named]), batch.counts[named]),
        "places": masked_mse(heads.place(mentions), batch.places),
        "targets": masked_mse(heads.target(targets), batch.targets),
        "image": seen.pop("loss"),
    }
    return {"loss": weighted(losses, WEIGHTS), **losses, **seen, "right": words["right"]}
