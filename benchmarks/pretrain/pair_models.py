"""METER-mini and ViLT-mini: 12 layers that can be skipped, on 96 px images."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.pretrain.family import HEADS, TEXT_TOKENS, PairRecipe, Size, mini_sizes, run_stages
from benchmarks.pretrain.losses import Features
from benchmarks.pretrain.tokenizer import BERT, ROBERTA
from das_gym.models.base import State
from das_gym.models.meter.inputs import CLIP_MEAN, CLIP_STD
from das_gym.models.meter.model import METER
from das_gym.models.meter.network import METERConfig
from das_gym.models.vilt.inputs import VILT_MEAN, VILT_STD
from das_gym.models.vilt.model import ViLT
from das_gym.models.vilt.network import ViLTConfig

EARLY = 4
"""Blocks of ViLT-mini before the losses that METER-mini has at the end of its image encoder."""


class MeterMini(PairRecipe):
    """3 image, 2 text and 6 + 6 fusion layers.

    The first part trains the image encoder, and the early features are what the encoders put out.
    """

    size = Size(hidden_size=64, image_steps=2000, image_batch_size=64, steps=5000, batch_size=80, learning_rate=8e-4)
    mean, std = CLIP_MEAN, CLIP_STD
    tokens = ROBERTA
    positions = r"image_encoder.*position"
    words = r"embedding"

    def build(self, hidden_size: int, vocab_size: int, bottleneck: int) -> METER:
        config = METERConfig(
            **mini_sizes(hidden_size, vocab_size, bottleneck),
            vision_width=hidden_size,
            vision_layers=3,
            vision_heads=HEADS,
            text_width=hidden_size,
            text_layers=2,
            text_heads=HEADS,
            max_positions=TEXT_TOKENS + 2,
        )
        return METER(config)

    def image_parts(self, model: METER) -> dict[str, nn.Module]:
        return {"encoder": model.image_encoder, "transform": model.image_transform}

    def early_patches(self, model: METER, image: Tensor) -> Tensor:
        return cast(Tensor, model.encode_image(image)[:, 1:])

    def features(self, model: METER, batch: Mapping[str, Tensor]) -> Features:
        encoded = model.encode(batch)
        state = run_stages(model, model.embed(encoded), range(len(model.stages)))
        return Features(
            text=encoded.hidden["text"],
            patches=encoded.hidden["image"][:, 1:],
            fused_text=state.hidden["text"],
            fused_patches=state.hidden["image"][:, 1:],
            pooled=model.pool(state),
        )


class ViltMini(PairRecipe):
    """12 blocks. The early features are those after `EARLY` of them."""

    size = Size(hidden_size=64, image_steps=2000, image_batch_size=64, steps=5000, batch_size=80, learning_rate=1e-3)
    mean, std = (VILT_MEAN,) * 3, (VILT_STD,) * 3
    tokens = BERT
    positions = r"^(image_positions|class_token)$"
    words = r"^(word_embeddings|text_positions)\.weight$"

    def build(self, hidden_size: int, vocab_size: int, bottleneck: int) -> ViLT:
        return ViLT(ViLTConfig(**mini_sizes(hidden_size, vocab_size, bottleneck), max_positions=TEXT_TOKENS))

    def image_parts(self, model: ViLT) -> dict[str, nn.Module]:
        return {"model": model}

    def early_patches(self, model: ViLT, image: Tensor) -> Tensor:
        """See `PairRecipe.early_patches`; the text has only its first and last token."""
        ids = torch.tensor(BERT.ends).expand(len(image), 2)
        state = model.embed(model.encode({"image": image, "input_ids": ids, "attention_mask": torch.ones_like(ids)}))
        return _normed(run_stages(model, state, range(EARLY)))[:, 3:]

    def features(self, model: ViLT, batch: Mapping[str, Tensor]) -> Features:
        early = run_stages(model, model.embed(model.encode(batch)), range(EARLY))
        state = run_stages(model, early, range(EARLY, len(model.stages)))
        early_hidden = _normed(early)
        hidden = model.final_norm(state.hidden["joint"])
        tokens = batch["input_ids"].shape[1]
        return Features(
            text=early_hidden[:, :tokens],
            patches=early_hidden[:, tokens + 1 :],
            fused_text=hidden[:, :tokens],
            fused_patches=hidden[:, tokens + 1 :],
            pooled=model.pool(state),
        )


def _normed(state: State) -> Tensor:
    """Return the joint stream at an even scale: blocks add to it without end."""
    return F.layer_norm(state.hidden["joint"], state.hidden["joint"].shape[-1:])
