"""Pre-train the mini models: the shipped checkpoints come from here.

METER-mini and ViLT-mini learn from captioned scenes. First the layers that read the image alone learn to name colour and
shape at every patch. Then all parameters learn masked language modelling, image-text matching, which patches a colour or
shape word points at (before fusion, as in GLIP), which patches show what the sentence is about (after fusion, as in MDETR),
and the position of every object. Without the dense losses, fusion stays at the language prior for a very long time. A family
without encoders uses its first blocks for the first part, with an empty text.

SmolVLM-mini and LLaVA-mini learn to answer questions about scenes. First the vision tower and the connector learn, at every
image token, the colour, shape and centre of the object it shows and which of its pixels belong to it. Then all
parameters learn to answer questions and to describe scenes, and at the end only to answer. Besides the words of the answers,
the model predicts half-way up the decoder how many objects a name in the question fits and where the object is, and further
up the position of the object that is the answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from das_gym.adapt.training import Log, StepResult, add_prefix
from torch import nn

from benchmarks.pretrain.batches import CaptionBatches, image_batch
from benchmarks.pretrain.config import CHECKPOINTS, PretrainConfig, make_trainer
from benchmarks.pretrain.conversation_losses import ConversationHeads, conversation_losses, image_token_losses
from benchmarks.pretrain.conversations import ConversationBatches, sampled_images
from benchmarks.pretrain.family import PATCH_SIZE, AnsweringModel
from benchmarks.pretrain.losses import PretrainHeads, caption_losses, image_losses
from benchmarks.pretrain.models import ANSWERING_MODELS, PRETRAIN_MODELS
from benchmarks.pretrain.tokenizer import tokenizer_files, train_tokenizer
from das_gym.files import write_json
from das_gym.models.base import VLP
from das_gym.models.checkpoints import save_checkpoint
from das_gym.models.quiet import bars_on_terminals

DESCRIBED = 0.6
"""Share of the second part's steps in which scenes are described too."""


def pretrain(config: PretrainConfig, out: Path, checkpoints: Path, log: Log | None = None) -> Path:
    """Pre-train a mini model: by `pretrain_vlm` or `pretrain_vlp`."""
    train = pretrain_vlm if config.model in ANSWERING_MODELS else pretrain_vlp
    return train(config, out, checkpoints, log)


def pretrain_vlp(config: PretrainConfig, out: Path, checkpoints: Path, log: Log | None = None) -> Path:
    """Pre-train METER-mini or ViLT-mini.

    Args:
        config: Settings.
        out: Folder to write the checkpoint to: config.json, model.safetensors and the tokenizer. It holds the
            image-text matching head too: `load_checkpoint(out).heads["itm_score"]`, row 1 = they match.
        checkpoints: Folder of intermediate checkpoints; training resumes from them.
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


def pretrain_vlm(config: PretrainConfig, out: Path, checkpoints: Path, log: Log | None = None) -> Path:
    """Pre-train a model that answers in words.

    Args:
        config: Settings; `model` is a key of `ANSWERING_MODELS`.
        out: Folder to write model, generation settings, tokenizer and processor to, as `from_pretrained` reads them;
            weights in float16.
        checkpoints: Folder of intermediate checkpoints; training resumes from them.
        log: Called with name, value and step.

    Returns:
        `out`.
    """
    family, size = ANSWERING_MODELS[config.model], config.size
    tokenizer = family.make_tokenizer(config.seed)
    model = family.build(size.hidden_size, tokenizer)
    torch.manual_seed(config.seed)
    family.initialise(model)
    heads = ConversationHeads(size.hidden_size)

    def look(index: int) -> StepResult:
        batch = sampled_images(config.seed, index, size.image_batch_size, family.normalise)
        return image_token_losses(heads, family.image_tokens(model, batch.scenes.image), batch)

    eyes: dict[str, nn.Module] = {**family.eyes(model), "heads": heads.dense()}
    make_trainer(config, eyes, size.image_steps, config.image_learning_rate, checkpoints / CHECKPOINTS[0]).run(
        look, "images", add_prefix("image", log)
    )
    batches = ConversationBatches(family, tokenizer, config.seed, size.batch_size)

    def talk(index: int) -> StepResult:
        return conversation_losses(family, model, heads, batches(index, index < DESCRIBED * size.steps))

    parts = {"model": model, "heads": heads}
    make_trainer(config, parts, size.steps, size.learning_rate, checkpoints / CHECKPOINTS[1]).run(
        talk, "questions", add_prefix("answer", log)
    )
    save_answering_model(family, model, tokenizer, out)
    return out


def save_answering_model(family: AnsweringModel, model: Any, tokenizer: Any, out: Path) -> None:
    """Write a folder that `from_pretrained` reads: weights in float16, which config.json has loaded as float32."""
    with bars_on_terminals():
        model.half().save_pretrained(out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    write_json(out / "config.json", config | {"dtype": "float32"})
    tokenizer.backend_tokenizer.no_padding()  # of the last batch
    family.make_processor(tokenizer).save_pretrained(out)
