"""METER-mini: 3 image, 2 text and 6 + 6 fusion layers on 96 px images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from benchmarks.pretrain.family import HEADS, TEXT_TOKENS, PairRecipe, Size, mini_sizes, run_stages
from benchmarks.pretrain.losses import Features
from benchmarks.pretrain.tokenizer import ROBERTA
from das_gym.models.meter.inputs import CLIP_MEAN, CLIP_STD
from das_gym.models.meter.model import METER
from das_gym.models.meter.network import METERConfig


class MeterMini(PairRecipe):
    """See `PairRecipe`. The first part trains the image encoder, and the early features are what the encoders put out."""

    size = Size(hidden_size=64, image_steps=2000, image_batch_size=64, steps=5000, batch_size=80, learning_rate=8e-4)
    mean, std = CLIP_MEAN, CLIP_STD
    special_tokens = ROBERTA
    positions, words = r"image_encoder.*position", r"embedding"

    def build(self, hidden_size: int, vocab_size: int, bottleneck: int) -> METER:
        """See `PairRecipe.build`."""
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
        """See `PairRecipe.image_parts`."""
        return {"encoder": model.image_encoder, "transform": model.image_transform}

    def early_patches(self, model: METER, image: Tensor) -> Tensor:
        """See `PairRecipe.early_patches`."""
        return cast(Tensor, model.encode_image(image)[:, 1:])

    def features(self, model: METER, batch: Mapping[str, Tensor]) -> Features:
        """See `PairRecipe.features`."""
        encoded = model.encode(batch)
        state = run_stages(model, model.embed(encoded), range(len(model.stages)))
        return Features(
            text=encoded.hidden["text"],
            patches=encoded.hidden["image"][:, 1:],
            fused_text=state.hidden["text"],
            fused_patches=state.hidden["image"][:, 1:],
            pooled=model.pool(state),
        )
