"""What pre-training must know of each model: its mini size, its first weights, and where the losses read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from das_gym.adapt.pretrain.losses import Features
from das_gym.adapt.pretrain.tokenizer import BERT, ROBERTA, SpecialTokens
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from das_gym.models.base import VLP, State
from das_gym.models.meter.inputs import CLIP_MEAN, CLIP_STD
from das_gym.models.meter.model import METER, METERConfig
from das_gym.models.vilt.inputs import VILT_MEAN, VILT_STD
from das_gym.models.vilt.model import ViLT, ViLTConfig
from das_gym.shapes.scenes import IMAGE_SIZE

PATCH_SIZE = 16
HEADS = 4
TEXT_TOKENS = 64
"""Longest text of the mini models, in tokens."""

VILT_EARLY = 4
"""Blocks of ViLT-mini before the losses that METER-mini has at the end of its image encoder."""


@dataclass(frozen=True)
class PretrainModel:
    """A model as pre-training sees it.

    Attributes:
        build: From hidden size, vocabulary size, bottleneck and skip bottleneck to the mini model.
        initialise: Gives it its first weights.
        image_parts: The modules that the first part trains.
        early_patches: From the model and images to (batch, patches, hidden_size), for the first part.
        features: From the model and a batch to what the losses of the second part read.
        mean, std: Of its pixels, red, green and blue.
        special_tokens: Of its tokenizer.
        learning_rate: Peak, of the second part.
    """

    build: Callable[[int, int, int, int], VLP]
    initialise: Callable[[Any], None]
    image_parts: Callable[[Any], dict[str, nn.Module]]
    early_patches: Callable[[Any, Tensor], Tensor]
    features: Callable[[Any, Mapping[str, Tensor]], Features]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    special_tokens: SpecialTokens
    learning_rate: float

    def normalise(self, pixels: Tensor) -> Tensor:
        """(batch, 3, height, width) pixels, 0..1, as the model reads them."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        return (pixels - mean) / std


def build_meter(hidden_size: int, vocab_size: int, bottleneck: int, skip_bottleneck: int) -> METER:
    """METER-mini: 3 image, 2 text and 6 + 6 fusion layers on 96 px images."""
    return METER(
        METERConfig(
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            hidden_size=hidden_size,
            num_heads=HEADS,
            vision_width=hidden_size,
            vision_layers=3,
            vision_heads=HEADS,
            text_width=hidden_size,
            text_layers=2,
            text_heads=HEADS,
            vocab_size=vocab_size,
            max_positions=TEXT_TOKENS + 2,
            bottleneck=bottleneck,
            skip_bottleneck=skip_bottleneck,
            dropout=0.0,
        )
    )


def build_vilt(hidden_size: int, vocab_size: int, bottleneck: int, skip_bottleneck: int) -> ViLT:
    """ViLT-mini: 12 blocks on 96 px images."""
    return ViLT(
        ViLTConfig(
            image_size=IMAGE_SIZE,
            patch_size=PATCH_SIZE,
            hidden_size=hidden_size,
            num_heads=HEADS,
            vocab_size=vocab_size,
            max_positions=TEXT_TOKENS,
            bottleneck=bottleneck,
            skip_bottleneck=skip_bottleneck,
            dropout=0.0,
        )
    )


def initialise_meter(model: METER) -> None:
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


def initialise_vilt(model: ViLT) -> None:
    """Xavier weights, likewise; words, patches and positions as METER-mini's."""
    for name, parameter in model.named_parameters():
        if "adapter" in name or "token_types" in name:
            continue
        if name == "patch_embedding.weight":
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif name in ("image_positions", "class_token"):
            nn.init.normal_(parameter, std=0.3)
        elif name in ("word_embeddings.weight", "text_positions.weight"):
            nn.init.normal_(parameter, std=0.1)
        elif parameter.ndim == 2:
            nn.init.xavier_uniform_(parameter)


def run_stages(model: VLP, state: State, stages: range) -> State:
    """The state after the stages, nothing skipped, with every token and not the pooled ones alone."""
    for stage in stages:
        layers = model.stages[stage]
        state = state.with_hidden({model.layers[i].stream: model.run_layer(i, state, skipped=False) for i in layers})
    return state


def meter_features(model: METER, batch: Mapping[str, Tensor]) -> Features:
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


def vilt_features(model: ViLT, batch: Mapping[str, Tensor]) -> Features:
    """Early is after VILT_EARLY blocks."""
    early = run_stages(model, model.embed(model.encode(batch)), range(VILT_EARLY))
    state = run_stages(model, early, range(VILT_EARLY, len(model.stages)))
    early_hidden, hidden = _normed(early), model.final_norm(state.hidden["joint"])
    tokens = batch["input_ids"].shape[1]
    return Features(
        text=early_hidden[:, :tokens],
        patches=early_hidden[:, tokens + 1 :],
        fused_text=hidden[:, :tokens],
        fused_patches=hidden[:, tokens + 1 :],
        pooled=model.pool(state),
    )


def vilt_early_patches(model: ViLT, image: Tensor) -> Tensor:
    """The patches after VILT_EARLY blocks beside a text of nothing but its first and last token."""
    ids = torch.tensor([BERT.first, BERT.last]).expand(len(image), 2)
    state = model.embed(model.encode({"image": image, "input_ids": ids, "attention_mask": torch.ones_like(ids)}))
    return _normed(run_stages(model, state, range(VILT_EARLY)))[:, 3:]


def _normed(state: State) -> Tensor:
    """The joint stream at an even scale: blocks add to it without end."""
    joint = state.hidden["joint"]
    return F.layer_norm(joint, joint.shape[-1:])


PRETRAIN_MODELS = {
    "METER": PretrainModel(
        build=build_meter,
        initialise=initialise_meter,
        image_parts=lambda model: {"encoder": model.image_encoder, "transform": model.image_transform},
        early_patches=lambda model, image: cast(Tensor, model.encode_image(image)[:, 1:]),
        features=meter_features,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        special_tokens=ROBERTA,
        learning_rate=8e-4,
    ),
    "ViLT": PretrainModel(
        build=build_vilt,
        initialise=initialise_vilt,
        image_parts=lambda model: {"model": model},
        early_patches=vilt_early_patches,
        features=vilt_features,
        mean=(VILT_MEAN,) * 3,
        std=(VILT_STD,) * 3,
        special_tokens=BERT,
        learning_rate=1e-3,
    ),
}
"""By name."""
