"""METER-mini: its size, its first weights, and where the losses read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from benchmarks.pretrain.family import HEADS, TEXT_TOKENS, PretrainModel, mini_sizes, run_stages
from benchmarks.pretrain.losses import Features
from benchmarks.pretrain.tokenizer import ROBERTA
from das_gym.models.meter.inputs import CLIP_MEAN, CLIP_STD
from das_gym.models.meter.model import METER
from das_gym.models.meter.network import METERConfig


def build(hidden_size: int, vocab_size: int, bottleneck: int, skip_bottleneck: int) -> METER:
    """METER-mini: 3 image, 2 text and 6 + 6 fusion layers on 96 px images."""
    return METER(
        METERConfig(
            **mini_sizes(hidden_size, vocab_size, bottleneck, skip_bottleneck),
            vision_width=hidden_size,
            vision_layers=3,
            vision_heads=HEADS,
            text_width=hidden_size,
            text_layers=2,
            text_heads=HEADS,
            max_positions=TEXT_TOKENS + 2,
        )
    )


def initialise(model: METER) -> None:
    """Xavier weights: at width 64 the usual N(0, 0.02), meant for 768, leaves signals too small to learn from."""
    for name, parameter in model.named_parameters():
        if "adapter" in name:
            continue
        if "patch_embedding" in name:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif "image_encoder" in name and "position" in name:
            nn.init.normal_(parameter, std=0.3)
        elif "embedding" in name and parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.1)
        elif parameter.ndim == 2 and "token_types" not in name:
            nn.init.xavier_uniform_(parameter)


def features(model: METER, batch: Mapping[str, Tensor]) -> Features:
    """Early is what the encoders put out."""
    encoded = model.encode(batch)
    state = run_stages(model, model.embed(encoded), range(len(model.stages)))
    return Features(
        text=encoded.hidden["text"],
        patches=encoded.hidden["image"][:, 1:],
        fused_text=state.hidden["text"],
        fused_patches=state.hidden["image"][:, 1:],
        pooled=model.pool(state),
    )


METER_MINI = PretrainModel(
    build=build,
    initialise=initialise,
    image_parts=lambda model: {"encoder": model.image_encoder, "transform": model.image_transform},
    early_patches=lambda model, image: cast(Tensor, model.encode_image(image)[:, 1:]),
    features=features,
    mean=CLIP_MEAN,
    std=CLIP_STD,
    special_tokens=ROBERTA,
)
