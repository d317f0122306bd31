"""The losses of pre-training, and the heads that only they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from das_gym.adapt.training import StepResult
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.pretrain.batches import IGNORE, CaptionBatch, ImageBatch
from benchmarks.pretrain.texts import PATCH_SIZE
from das_gym.models.transformers.stack import cache_name
from das_gym.shapes.scenes import COLORS, MAX_OBJECTS, SHAPES

if TYPE_CHECKING:
    from benchmarks.pretrain.conversations import ConversationBatch
    from benchmarks.pretrain.family import AnsweringRecipe

LOSS_WEIGHTS = {
    "words": 1.0,
    "match": 1.0,
    "roles": 2.0,
    "pointing": 3.0,
    "color": 1.0,
    "shape": 1.0,
    "center": 10.0,
    "fused_center": 10.0,
    "bearings": 10.0,
    "places": 10.0,
    "offsets": 10.0,
}

IMAGE_TOKEN_WEIGHTS = {"color": 1.0, "shape": 1.0, "center": 10.0, "silhouette": 3.0}
CONVERSATION_WEIGHTS = {"words": 1.0, "counts": 0.3, "places": 5.0, "targets": 5.0, "image": 0.5}

ROLE_WEIGHTS = (1.0, 2.0, 2.0)
"""Of the classes NOT_MENTIONED, SUBJECT and OTHER: most patches are not mentioned."""


@dataclass(frozen=True)
class Features:
    """Inputs of the losses; every tensor but `pooled` is (batch, tokens, hidden_size).

    Attributes:
        text, patches: Early: before fusion where a model has encoders.
        fused_text, fused_patches: After the last layer.
        pooled: (batch, feature_size), what task heads read.
    """

    text: Tensor
    patches: Tensor
    fused_text: Tensor
    fused_patches: Tensor
    pooled: Tensor


class PretrainHeads(nn.Module):
    """The heads that only pre-training needs."""

    def __init__(self, size: int, feature_size: int, vocab_size: int) -> None:
        super().__init__()
        self.color = nn.Linear(size, len(COLORS) + 1)
        self.shape = nn.Linear(size, len(SHAPES) + 1)
        self.pointing = nn.Linear(size, size)
        self.role = nn.Linear(size, 3)
        self.word = nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.LayerNorm(size), nn.Linear(size, vocab_size))
        self.match = nn.Linear(feature_size, 2)
        self.center = nn.Linear(size, 2)
        self.fused_center = nn.Linear(size, 2)
        self.bearing = nn.Linear(size, 2)
        self.place = nn.Linear(size, 2)
        self.offset = nn.Linear(feature_size, 2)

    def dense(self) -> nn.Module:
        """The heads of `image_losses`."""
        return nn.ModuleList((self.color, self.shape, self.center))


def image_losses(heads: PretrainHeads, patches: Tensor, batch: ImageBatch) -> StepResult:
    """Return all losses of the first part, and their weighted sum as `loss`."""
    losses = patch_losses(heads, patches, batch)
    return {"loss": weighted(losses, LOSS_WEIGHTS), **losses}


def caption_losses(heads: PretrainHeads, features: Features, batch: CaptionBatch) -> StepResult:
    """Return all losses of the second part, and their weighted sum as `loss`."""
    hidden_words = batch.words != IGNORE
    role = heads.role(features.fused_patches).flatten(0, 1)
    losses = {
        "words": F.cross_entropy(heads.word(features.fused_text[hidden_words]), batch.words[hidden_words]),
        "match": F.cross_entropy(heads.match(features.pooled), batch.matches, ignore_index=IGNORE),
        "roles": F.cross_entropy(role, batch.roles.flatten(), torch.tensor(ROLE_WEIGHTS), ignore_index=IGNORE),
        "pointing": pointing_loss(heads, features, batch),
        **patch_losses(heads, features.patches, batch.scenes),
        # Where things are, and where one lies seen from the other, after fusion.
        "fused_center": F.mse_loss(heads.fused_center(features.fused_patches), batch.scenes.centers),
        "bearings": masked_mse(heads.bearing(features.fused_patches), batch.bearings),
        "places": masked_mse(heads.place(features.fused_text), batch.places),
        "offsets": masked_mse(heads.offset(features.pooled), batch.offsets),
    }
    return {"loss": weighted(losses, LOSS_WEIGHTS), **losses}


def patch_losses(heads: PretrainHeads, patches: Tensor, batch: ImageBatch) -> StepResult:
    """Return the cross-entropy of colour and shape at every patch, and the squared error of where that object is."""
    return {
        "center": F.mse_loss(heads.center(patches), batch.centers),
        "color": F.cross_entropy(heads.color(patches).flatten(0, 1), batch.colors.flatten()),
        "shape": F.cross_entropy(heads.shape(patches).flatten(0, 1), batch.shapes.flatten()),
    }


def pointing_loss(heads: PretrainHeads, features: Features, batch: CaptionBatch) -> Tensor:
    """Return the binary cross-entropy of each colour or shape word against the patches that show it."""
    patches = features.patches
    row, token = torch.nonzero((batch.color_words >= 0) | (batch.shape_words >= 0), as_tuple=True)
    color = batch.color_words[row, token, None]
    shape = batch.shape_words[row, token, None]
    shown = torch.where(color >= 0, batch.scenes.colors[row] == color, batch.scenes.shapes[row] == shape)
    score = torch.einsum("nd,npd->np", heads.pointing(features.text[row, token]), patches[row]) * patches.shape[-1] ** -0.5
    return F.binary_cross_entropy_with_logits(score, shown.float())


def masked_mse(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Return the squared error where the target is not NaN."""
    known = ~wanted.isnan()
    return F.mse_loss(predicted[known], wanted[known])


def weighted(losses: StepResult, weights: Mapping[str, float]) -> Tensor:
    """Return the weighted sum of losses."""
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


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
    states: Sequence[Tensor] | Mapping[int, Tensor]
    last: Tensor


def features(recipe: AnsweringRecipe, model: Any, batch: ConversationBatch) -> ConversationFeatures:
    """Run the decoder once over the images, and once over all that is asked about them."""
    patches = recipe.image_tokens(model, batch.images.image)
    decoder = model.get_decoder()
    embeddings = model.get_input_embeddings()
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


def image_token_losses(heads: ConversationHeads, patches: Tensor, batch: ImageBatch) -> StepResult:
    """Return losses of the object at every image token and of the pixels that show it, and as `loss` their sum."""
    losses = {
        "silhouette": F.binary_cross_entropy_with_logits(heads.silhouette(patches), batch.silhouettes),
        **patch_losses(heads.patches, patches, batch),
    }
    return {"loss": weighted(losses, IMAGE_TOKEN_WEIGHTS), **losses}


def conversation_losses(
    recipe: AnsweringRecipe, model: Any, heads: ConversationHeads, batch: ConversationBatch
) -> StepResult:
    """Return all losses, their weighted sum as `loss`, and the share of answers' tokens that come out right as `right`."""
    return losses_of_features(recipe, model, heads, features(recipe, model, batch), batch)


def losses_of_features(
    recipe: AnsweringRecipe, model: Any, heads: ConversationHeads, read: ConversationFeatures, batch: ConversationBatch
) -> StepResult:
    """Return what `conversation_losses` returns, from what the decoder has read."""
    named = batch.counts != IGNORE
    mentions = read.states[recipe.mention_layer]
    seen = image_token_losses(heads, read.patches, batch.images)
    words = words_losses(model, read, batch)
    losses = {
        "words": words["words"],
        "counts": F.cross_entropy(heads.count(mentions[named]), batch.counts[named]),
        "places": masked_mse(heads.place(mentions), batch.places),
        "targets": masked_mse(heads.target(read.states[recipe.target_layer]), batch.targets),
        "image": seen.pop("loss"),
    }
    return {"loss": weighted(losses, CONVERSATION_WEIGHTS), **losses, **seen, "right": words["right"]}
