"""Pre-training SmolVLM-mini on questions about scenes: the shipped model comes from here.

First the vision tower and the connector learn, at every image token, the colour, shape and centre of what it shows and
which of its pixels show it; then the whole model answers questions and describes scenes, and in the end answers alone.
Beside the answers' words it is taught, half-way up the decoder, how many objects a name in the question fits and where
the one lies, and further up where the object lies that is the answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from das_gym.adapt.pretrain.config import CHECKPOINTS, PretrainConfig, make_trainer
from das_gym.adapt.pretrain.smolvlm.batches import ConversationBatches, drawn_pictures
from das_gym.adapt.pretrain.smolvlm.losses import ConversationHeads, conversation_losses, image_tokens, picture_losses
from das_gym.adapt.pretrain.smolvlm.model import build, initialise
from das_gym.adapt.pretrain.smolvlm.processor import make_processor, train_tokenizer
from das_gym.adapt.training import Log, StepResult, prefixed
from torch import Tensor, nn

from das_gym.files import write_json
from das_gym.models.quiet import bars_on_terminals

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, SmolVLMForConditionalGeneration

DESCRIBED = 0.6
"""Share of the second part's steps in which scenes are described too."""


def normalise(pixels: Tensor) -> Tensor:
    """Pixels, 0..1, as the model reads them: -1..1, as its processor does."""
    return pixels * 2 - 1


def pretrain_vlm(config: PretrainConfig, out: Path, checkpoints: Path, log: Log | None = None) -> Path:
    """Pre-train SmolVLM-mini.

    Args:
        config: Settings.
        out: Folder to write model, generation settings, tokenizer and processor to, as `from_pretrained` reads them;
            weights in float16.
        checkpoints: Folder of intermediate checkpoints; what lies there is gone on from.
        log: Called with name, value and step.

    Returns:
        `out`.
    """
    size = config.size
    tokenizer = train_tokenizer(config.seed)
    model = build(size.hidden_size, tokenizer)
    torch.manual_seed(config.seed)
    initialise(model)
    heads = ConversationHeads(size.hidden_size)

    def look(index: int) -> StepResult:
        batch = drawn_pictures(config.seed, index, size.image_batch_size, normalise)
        return picture_losses(heads, image_tokens(model, batch.scenes.image), batch)

    eyes: dict[str, nn.Module] = {
        "vision": model.model.vision_model,
        "connector": model.model.connector,
        "heads": heads.dense(),
    }
    make_trainer(config, eyes, size.image_steps, config.image_learning_rate, checkpoints / CHECKPOINTS[0]).run(
        look, "images", prefixed("image", log)
    )
    batches = ConversationBatches(tokenizer, config.seed, size.batch_size, normalise)

    def talk(index: int) -> StepResult:
        return conversation_losses(model, heads, batches(index, index < DESCRIBED * size.steps))

    parts = {"model": model, "heads": heads}
    make_trainer(config, parts, size.steps, size.learning_rate, checkpoints / CHECKPOINTS[1]).run(
        talk, "questions", prefixed("answer", log)
    )
    save(model, tokenizer, out)
    return out


def save(model: SmolVLMForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write a folder that `from_pretrained` reads: weights in float16, which config.json has loaded as float32."""
    with bars_on_terminals():
        model.half().save_pretrained(out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    write_json(out / "config.json", config | {"dtype": "float32"})
    tokenizer.backend_tokenizer.no_padding()  # of the last batch
    make_processor(tokenizer).save_pretrained(out)
