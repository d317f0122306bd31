"""Pre-training the mini models: the shipped checkpoints come from here.

SmolVLM-mini and LLaVA-mini have a recipe of their own, `vlm/recipe.py`. METER-mini and ViLT-mini learn from captioned
scenes. First the layers that read the image alone learn to name colour and shape at every patch; then the whole model
learns masked language modelling, image-text matching, which patches a colour or shape word points at
(before fusion, as in GLIP), which patches show what the sentence is about (after fusion, as in MDETR), and where
everything is. Without the dense losses fusion stays at the language prior for a very long time. Where a family has no
encoders, its first blocks stand in for them, in the first part beside an empty text.
"""

from __future__ import annotations

from pathlib import Path

import torch
from das_gym.adapt.training import Log, StepResult, add_prefix

from benchmarks.pretrain.batches import CaptionBatches, image_batch
from benchmarks.pretrain.config import CHECKPOINTS, PretrainConfig, make_trainer
from benchmarks.pretrain.family import PATCH_SIZE
from benchmarks.pretrain.losses import PretrainHeads, caption_losses, image_losses
from benchmarks.pretrain.models import PRETRAIN_MODELS
from benchmarks.pretrain.tokenizer import tokenizer_files, train_tokenizer
from benchmarks.pretrain.vlm.models import ANSWERING_MODELS
from benchmarks.pretrain.vlm.recipe import pretrain_vlm
from das_gym.models.base import VLP
from das_gym.models.checkpoints import save_checkpoint


def pretrain(config: PretrainConfig, out: Path, checkpoints: Path, log: Log | None = None) -> Path:
    """Pre-train a mini model: `pretrain_vlm` or `pretrain_vlp`, which say what is written."""
    train = pretrain_vlm if config.model in ANSWERING_MODELS else pretrain_vlp
    return train(config, out, checkpoints, log)


def pretrain_vlp(config: PretrainConfig, out: Path, checkpoints: Path, log: Log | None = None) -> Path:
    """Pre-train METER-mini or ViLT-mini.

    Args:
        config: Settings.
        out: Folder to write the checkpoint to: config.json, model.safetensors and the tokenizer. It holds the
            image-text matching head too: `load_checkpoint(out).heads["itm_score"]`, row 1 = they match.
        checkpoints: Folder of intermediate checkpoints; what lies there is gone on from.
        log: Called with name, value and step.

    Returns:
        `out`.
    """
    torch.manual_seed(config.seed)
    recipe, size = PRETRAIN_MODELS[config.model], config.size
    tokenizer = train_tokenizer(config.seed, recipe.special_tokens)
    bare = recipe.build(size.hidden_size, len(tokenizer), 0, config.skip_bottleneck)
    recipe.initialise(bare)
    for name, parameter in bare.named_parameters():
        parameter.requires_grad_("adapter" not in name)
    heads = PretrainHeads(size.hidden_size, bare.feature_size, len(tokenizer))
    _train_images(config, bare, heads, checkpoints / CHECKPOINTS[0], log)
    batches = CaptionBatches(tokenizer, config.seed, size.batch_size, PATCH_SIZE, recipe.normalise)
    _train_captions(config, bare, heads, batches, checkpoints / CHECKPOINTS[1], log)
    model = recipe.build(size.hidden_size, len(tokenizer), config.bottleneck, config.skip_bottleneck)
    model.load_state_dict(bare.state_dict(), strict=False)
    adapters = [name for name in model.state_dict() if "adapter" in name]
    match = {"itm_score": heads.match.state_dict()}
    save_checkpoint(out, model, heads=match, files=tokenizer_files(tokenizer), leave_out=adapters)
    return out


def _train_images(config: PretrainConfig, model: VLP, heads: PretrainHeads, checkpoint: Path, log: Log | None) -> None:
    recipe = PRETRAIN_MODELS[config.model]

    def step(index: int) -> StepResult:
        batch = image_batch(config.seed, index, config.size.image_batch_size, PATCH_SIZE, recipe.normalise)
        return image_losses(heads, recipe.early_patches(model, batch.image), batch)

    parts = {**recipe.image_parts(model), "heads": heads.dense()}
    trainer = make_trainer(config, parts, config.size.image_steps, config.image_learning_rate, checkpoint)
    trainer.run(step, "images", add_prefix("image", log))


def _train_captions(
    config: PretrainConfig, model: VLP, heads: PretrainHeads, batches: CaptionBatches, checkpoint: Path, log: Log | None
) -> None:
    recipe = PRETRAIN_MODELS[config.model]

    def step(index: int) -> StepResult:
        batch = batches(index)
        inputs = {"image": batch.scenes.image, "input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        return caption_losses(heads, recipe.features(model, inputs), batch)

    parts = {"model": model, "heads": heads}
    trainer = make_trainer(config, parts, config.size.steps, config.size.learning_rate, checkpoint)
    trainer.run(step, "captions", add_prefix("fusion", log))
