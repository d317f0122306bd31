"""ViLT-mini: its size, its first weights, and where the losses read it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.pretrain.family import TEXT_TOKENS, PretrainModel, mini_sizes, run_stages
from benchmarks.pretrain.losses import Features
from benchmarks.pretrain.tokenizer import BERT
from das_gym.models.base import State
from das_gym.models.vilt.inputs import VILT_MEAN, VILT_STD
from das_gym.models.vilt.model import ViLT
from das_gym.models.vilt.network import ViLTConfig

EARLY = 4
"""Blocks before the losses that METER-mini has at the end of its image encoder."""


def build(hidden_size: int, vocab_size: int, bottleneck: int, skip_bottleneck: int) -> ViLT:
    """ViLT-mini: 12 blocks on 96 px images."""
    sizes = mini_sizes(hidden_size, vocab_size, bottleneck, skip_bottleneck)
    return ViLT(ViLTConfig(**sizes, max_positions=TEXT_TOKENS))


def initialise(model: ViLT) -> None:
    """Xavier weights as for METER-mini; words, patches and positions as METER-mini's."""
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


def features(model: ViLT, batch: Mapping[str, Tensor]) -> Features:
    """Early is after EARLY blocks."""
    early = run_stages(model, model.embed(model.encode(batch)), range(EARLY))
    state = run_stages(model, early, range(EARLY, len(model.stages)))
    early_hidden, hidden = _normed(early), model.final_norm(state.hidden["joint"])
    tokens = batch["input_ids"].shape[1]
    return Features(
        text=early_hidden[:, :tokens],
        patches=early_hidden[:, tokens + 1 :],
        fused_text=hidden[:, :tokens],
        fused_patches=hidden[:, tokens + 1 :],
        pooled=model.pool(state),
    )


def early_patches(model: ViLT, image: Tensor) -> Tensor:
    """The patches after EARLY blocks, with a text of only its first and last token."""
    ids = torch.tensor([BERT.first, BERT.last]).expand(len(image), 2)
    state = model.embed(model.encode({"image": image, "input_ids": ids, "attention_mask": torch.ones_like(ids)}))
    return _normed(run_stages(model, state, range(EARLY)))[:, 3:]


def _normed(state: State) -> Tensor:
    """The joint stream at an even scale: blocks add to it without end."""
    joint = state.hidden["joint"]
    return F.layer_norm(joint, joint.shape[-1:])


VILT_MINI = PretrainModel(
    build=build,
    initialise=initialise,
    image_parts=lambda model: {"model": model},
    early_patches=early_patches,
    features=features,
    mean=(VILT_MEAN,) * 3,
    std=(VILT_STD,) * 3,
    special_tokens=BERT,
)
