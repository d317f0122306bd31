"""Pre-training SmolVLM-mini and LLaVA-mini on questions about scenes: the shipped models come from here.

First the vision tower and the connector learn, at every image token, the colour, shape and centre of what it shows and
which of its pixels show it; then the whole model answers questions and describes scenes, and in the end answers alone.
Beside the answers' words it is taught, half-way up the decoder, how many objects a name in the question fits and where
the one lies, and further up where the object lies that is the answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from das_gym.adapt.training import Log, StepResult, add_prefix
from torch import nn

from benchmarks.pretrain.config import CHECKPOINTS, PretrainConfig, make_trainer
from benchmarks.pretrain.vlm.batches import ConversationBatches, drawn_pictures
from benchmarks.pretrain.vlm.family import AnsweringModel
from benchmarks.pretrain.vlm.losses import ConversationHeads, conversation_losses, picture_losses
from benchmarks.pretrain.vlm.models import ANSWERING_MODELS
from das_gym.files import write_json
from das_gym.models.quiet import bars_on_terminals

DESCRIBED = 0.6
"""Share of the second part's steps in which scenes are described too."""


def pretrain_vlm(config: PretrainConfig, out: Path, checkpoints: Path, log: Log | None = None) -> Path:
    """Pre-train a model that answers in words.

    Args:
        config: Settings; `model` is a key of `ANSWERING_MODELS`.
        out: Folder to write model, generation settings, tokenizer and processor to, as `from_pretrained` reads them;
            weights in float16.
        checkpoints: Folder of intermediate checkpoints; what lies there is gone on from.
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
        batch = drawn_pictures(config.seed, index, size.image_batch_size, family.normalise)
        return picture_losses(heads, family.image_tokens(model, batch.scenes.image), batch)

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
    save(family, model, tokenizer, out)
    return out


def save(family: AnsweringModel, model: Any, tokenizer: Any, out: Path) -> None:
    """Write a folder that `from_pretrained` reads: weights in float16, which config.json has loaded as float32."""
    with bars_on_terminals():
        model.half().save_pretrained(out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    write_json(out / "config.json", config | {"dtype": "float32"})
    tokenizer.backend_tokenizer.no_padding()  # of the last batch
    family.make_processor(tokenizer).save_pretrained(out)
