"""Pre-training METER-mini on captioned scenes: the shipped checkpoint comes from here.

First the image encoder alone learns to name colour and shape at every patch; then the whole model
learns masked language modelling, image-text matching, which patches a colour or shape word points at
(before fusion, as in GLIP) and which patches show what the sentence is about (after fusion, as in
MDETR). Without the dense losses fusion stays at the language prior for a very long time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from adapt.pretrain_batches import IGNORE, CaptionBatch, CaptionBatches, ImageBatch, image_batch
from adapt.tokenizer import tokenizer_files, train_tokenizer
from adapt.training import (
    POSITIVE,
    TRAINING_RANGES,
    Group,
    StepResult,
    Trainer,
    adamw,
    check_ranges,
    polynomial_decay,
)
from das_gym.data.scenes import COLORS, IMAGE_SIZE, SHAPES
from das_gym.vlp.base import State
from das_gym.vlp.checkpoints import save_checkpoint
from das_gym.vlp.meter import METER, METERConfig

CHECKPOINTS = ("image.pt", "fusion.pt")
"""Names of the intermediate checkpoints of both parts."""

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


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of pre-training; the defaults made the shipped checkpoint.

    Attributes:
        seed: Of weights, scenes and captions.
        hidden_size: Width of encoders and fusion layers.
        bottleneck, skip_bottleneck: Adapters that the checkpoint will be given.
        image_steps, image_batch_size, image_learning_rate: Of the first part.
        steps, batch_size, learning_rate: Of the second part.
        warmup: Share of each part's steps.
        weight_decay: Of matrices.
        save_every: Steps between checkpoints.
    """

    seed: int = 0
    hidden_size: int = 64
    bottleneck: int = 16
    skip_bottleneck: int = 48
    image_steps: int = 2000
    image_batch_size: int = 64
    image_learning_rate: float = 2e-3
    steps: int = 5000
    batch_size: int = 80
    learning_rate: float = 8e-4
    warmup: float = 0.04
    weight_decay: float = 0.01
    save_every: int = 250

    def __post_init__(self) -> None:
        positive = ("image_steps", "image_batch_size", "image_learning_rate", "hidden_size", "skip_bottleneck")
        check_ranges(self, **TRAINING_RANGES, bottleneck=(0, math.inf), **dict.fromkeys(positive, POSITIVE))


def mini_config(config: PretrainConfig, vocab_size: int) -> METERConfig:
    """METER-mini: 3 image, 2 text and 6 + 6 fusion layers on 96 px images."""
    size = config.hidden_size
    return METERConfig(
        image_size=IMAGE_SIZE,
        patch_size=16,
        hidden_size=size,
        num_heads=4,
        vision_width=size,
        vision_layers=3,
        vision_heads=4,
        text_width=size,
        text_layers=2,
        text_heads=4,
        vocab_size=vocab_size,
        max_positions=66,
        bottleneck=config.bottleneck,
        skip_bottleneck=config.skip_bottleneck,
        dropout=0.0,
    )


class PretrainHeads(nn.Module):
    """The heads that only pre-training needs."""

    def __init__(self, size: int, vocab_size: int) -> None:
        super().__init__()
        self.color = nn.Linear(size, len(COLORS) + 1)
        self.shape = nn.Linear(size, len(SHAPES) + 1)
        self.pointing = nn.Linear(size, size)
        self.role = nn.Linear(size, 3)
        self.word = nn.Sequential(nn.Linear(size, size), nn.GELU(), nn.LayerNorm(size), nn.Linear(size, vocab_size))
        self.match = nn.Linear(2 * size, 2)
        self.center = nn.Linear(size, 2)
        self.fused_center = nn.Linear(size, 2)
        self.bearing = nn.Linear(size, 2)
        self.place = nn.Linear(size, 2)
        self.offset = nn.Linear(2 * size, 2)


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


def patch_losses(heads: PretrainHeads, patches: Tensor, batch: ImageBatch) -> StepResult:
    """Cross-entropy of colour and of shape at every patch, and the squared error of where that object is."""
    return {
        "center": F.mse_loss(heads.center(patches), batch.centers),
        "color": F.cross_entropy(heads.color(patches).flatten(0, 1), batch.colors.flatten()),
        "shape": F.cross_entropy(heads.shape(patches).flatten(0, 1), batch.shapes.flatten()),
    }


def pointing_loss(heads: PretrainHeads, text: Tensor, patches: Tensor, batch: CaptionBatch) -> Tensor:
    """Binary cross-entropy of each colour or shape word against the patches that show it."""
    row, token = torch.nonzero((batch.color_words >= 0) | (batch.shape_words >= 0), as_tuple=True)
    color, shape = batch.color_words[row, token, None], batch.shape_words[row, token, None]
    shown = torch.where(color >= 0, batch.scenes.colors[row] == color, batch.scenes.shapes[row] == shape)
    score = torch.einsum("nd,npd->np", heads.pointing(text[row, token]), patches[row]) * patches.shape[-1] ** -0.5
    return F.binary_cross_entropy_with_logits(score, shown.float())


def all_tokens(model: METER, encoded: State) -> State:
    """The state after the last stage with every token, not the pooled ones alone."""
    state = model.begin(encoded)
    for stage in model.stages:
        state = state.with_hidden({model.layers[i].stream: model.run_layer(i, state, skipped=False) for i in stage})
    return state


def masked_mse(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Squared error where the target is not NaN."""
    known = ~wanted.isnan()
    return F.mse_loss(predicted[known], wanted[known])


def place_losses(heads: PretrainHeads, state: State, pooled: Tensor, batch: CaptionBatch) -> StepResult:
    """Squared errors, after fusion, of where things are and of where one lies seen from the other."""
    patches = state.hidden["image"][:, 1:]
    return {
        "fused_center": F.mse_loss(heads.fused_center(patches), batch.scenes.centers),
        "bearings": masked_mse(heads.bearing(patches), batch.bearings),
        "places": masked_mse(heads.place(state.hidden["text"]), batch.places),
        "offsets": masked_mse(heads.offset(pooled), batch.offsets),
    }


def caption_losses(model: METER, heads: PretrainHeads, batch: CaptionBatch) -> StepResult:
    """All losses of the second part, their weighted sum as `loss`."""
    inputs = {"image": batch.scenes.image, "input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    encoded = model.encode(inputs)
    patches = encoded.hidden["image"][:, 1:]
    state = all_tokens(model, encoded)
    hidden_words = batch.words != IGNORE
    pooled = model.pool(state)
    role_weights = torch.tensor([1.0, 2.0, 2.0])
    losses = {
        "words": F.cross_entropy(heads.word(state.hidden["text"][hidden_words]), batch.words[hidden_words]),
        "match": F.cross_entropy(heads.match(pooled), batch.matches, ignore_index=IGNORE),
        "roles": F.cross_entropy(
            heads.role(state.hidden["image"][:, 1:]).flatten(0, 1), batch.roles.flatten(), role_weights, ignore_index=IGNORE
        ),
        "pointing": pointing_loss(heads, encoded.hidden["text"], patches, batch),
        **patch_losses(heads, patches, batch.scenes),
        **place_losses(heads, state, pooled, batch),
    }
    return {"loss": _weighted(losses), **losses}


def _weighted(losses: StepResult) -> Tensor:
    return torch.stack([LOSS_WEIGHTS[name] * loss for name, loss in losses.items()]).sum()


def pretrain(
    config: PretrainConfig, out: Path, checkpoints: Path, log: Callable[[str, float, int], None] | None = None
) -> Path:
    """Pre-train METER-mini.

    Args:
        config: Settings.
        out: Folder to write the checkpoint to: config.json, model.safetensors and the tokenizer.
        checkpoints: Folder of intermediate checkpoints; what lies there is gone on from.
        log: Called with name, value and step.

    Returns:
        `out`.
    """
    torch.manual_seed(config.seed)
    tokenizer = train_tokenizer(config.seed)
    full = mini_config(config, len(tokenizer))
    bare = METER(METERConfig(**{**vars(full), "bottleneck": 0}))
    initialise(bare)
    for name, parameter in bare.named_parameters():
        parameter.requires_grad_("adapter" not in name)
    heads = PretrainHeads(config.hidden_size, len(tokenizer))
    _train_image_encoder(config, bare, heads, checkpoints / CHECKPOINTS[0], log)
    _train_fusion(
        config, bare, heads, CaptionBatches(tokenizer, config.seed, config.batch_size, full.patch_size), checkpoints, log
    )
    model = METER(full)
    model.load_state_dict(bare.state_dict(), strict=False)
    adapters = [name for name in model.state_dict() if "adapter" in name]
    save_checkpoint(out, model, files=tokenizer_files(tokenizer), leave_out=adapters)
    return out


def _prefixed(part: str, log: Callable[[str, float, int], None] | None) -> Callable[[str, float, int], None] | None:
    """A log under whose names the two parts do not mix."""
    return None if log is None else lambda name, value, step: log(f"{part}.{name}", value, step)


def _train_image_encoder(
    config: PretrainConfig,
    model: METER,
    heads: PretrainHeads,
    checkpoint: Path,
    log: Callable[[str, float, int], None] | None,
) -> None:
    patch_size = model.config.patch_size

    def step(index: int) -> StepResult:
        batch = image_batch(config.seed, index, config.image_batch_size, patch_size)
        losses = patch_losses(heads, model.encode_image(batch.image)[:, 1:], batch)
        return {"loss": _weighted(losses), **losses}

    dense_heads = nn.ModuleList((heads.color, heads.shape, heads.center))
    parts = {"encoder": model.image_encoder, "transform": model.image_transform, "heads": dense_heads}
    parameters = [p for part in parts.values() for p in part.parameters()]
    optimizer = adamw([Group(parameters, config.image_learning_rate)], config.weight_decay)
    schedule = partial(polynomial_decay, steps=config.image_steps, warmup=config.warmup)
    Trainer(parts, optimizer, config.image_steps, schedule, checkpoint, config.save_every).run(
        step, "image encoder", _prefixed("image", log)
    )


def _train_fusion(
    config: PretrainConfig,
    model: METER,
    heads: PretrainHeads,
    batches: CaptionBatches,
    checkpoints: Path,
    log: Callable[[str, float, int], None] | None,
) -> None:
    parts: dict[str, nn.Module] = {"model": model, "heads": heads}
    parameters = [p for part in parts.values() for p in part.parameters() if p.requires_grad]
    optimizer = adamw([Group(parameters, config.learning_rate)], config.weight_decay)
    schedule = partial(polynomial_decay, steps=config.steps, warmup=config.warmup)
    trainer = Trainer(parts, optimizer, config.steps, schedule, checkpoints / CHECKPOINTS[1], config.save_every)
    trainer.run(lambda index: caption_losses(model, heads, batches(index)), "fusion", _prefixed("fusion", log))
