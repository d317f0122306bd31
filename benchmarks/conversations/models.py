"""How SmolVLM-mini and LLaVA-mini are asked about images, and what their decoders make of a batch of questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from das_gym.models.meter.inputs import CLIP_MEAN, CLIP_STD
from das_gym.models.transformers.recording import cache_name

if TYPE_CHECKING:
    from benchmarks.conversations.batches import ConversationBatch

IMAGE_TOKENS = 36
"""Tokens of an image of 96 px."""

SMOLVLM_IMAGE = "<fake_token_around_image><global-img>" + "<image>" * IMAGE_TOKENS + "<fake_token_around_image>"
"""An image in SmolVLM's prompts."""

HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Recipe:
    """What training must know of a model.

    Attributes:
        before, after, end: What chat template and processor put before the question, after it, and after the answer.
        mean, std: Of the pixels that the model reads: red, green and blue.
        reads_lists: Whether the model reads a list of images for each text.
        answer_space: What stands between `after` and the answer.
    """

    before: str
    after: str
    end: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    reads_lists: bool
    answer_space: str = " "

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return (batch, 3, height, width) pixels, 0..1, as the model reads them."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std

    def image_tokens(self, model: Any, image: Tensor) -> Tensor:
        """Return (batch, IMAGE_TOKENS, hidden_size) of (batch, 3, 96, 96) pixels."""
        given = image[:, None] if self.reads_lists else image
        return torch.stack(list(model.get_image_features(given).pooler_output))


SMOLVLM_MINI = Recipe(
    before="<|im_start|>User:" + SMOLVLM_IMAGE,
    after="<end_of_utterance>\nAssistant:",
    end="<end_of_utterance>",
    mean=HALF,
    std=HALF,
    reads_lists=True,
)
LLAVA_MINI = Recipe(
    before="<s>USER: " + "<image>" * IMAGE_TOKENS + "\n",
    after=" ASSISTANT:",
    end="</s>",
    mean=CLIP_MEAN,
    std=CLIP_STD,
    reads_lists=False,
)


@dataclass(frozen=True)
class Features:
    """Inputs of the losses.

    Attributes:
        patches: (batch, image tokens, size): the image as the decoder gets it.
        states: By decoder layer, (batch, tokens, size): what goes into it.
        last: (batch, tokens, size): what the language modelling head reads.
    """

    patches: Tensor
    states: Sequence[Tensor]
    last: Tensor


def features(recipe: Recipe, model: Any, batch: ConversationBatch) -> Features:
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
    return Features(patches, output.hidden_states, output.last_hidden_state)


def words_losses(model: Any, read: Features, batch: ConversationBatch) -> Mapping[str, Tensor]:
    """Return the cross-entropy of the answers' words, and the share of them that come out right."""
    said = batch.labels >= 0
    logits = model.lm_head(read.last[said])
    right = (logits.detach().argmax(-1) == batch.labels[said]).float().mean()
    return {"words": F.cross_entropy(logits, batch.labels[said]), "right": right}
