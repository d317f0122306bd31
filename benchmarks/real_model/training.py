"""Teach SmolLM2 to answer questions about images: LoRA on its decoder, the connector and the tower are trained."""

import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from das_gym.adapt.training import StepResult, Trainer, adamw, learning_rate_factor
from torch import nn

from benchmarks.pretrain.conversations import ConversationBatch, ConversationBatches
from benchmarks.pretrain.losses import ConversationFeatures, ConversationHeads, losses_of_features
from benchmarks.real_model.fast_decoder import FastDecoder
from benchmarks.real_model.vision_language import SmolVLM135M, build_model, load_tokenizer, start_connector

IMAGES_PER_STEP = 8
LORA_RATE, CONNECTOR_RATE, TOWER_RATE = 1e-3, 2e-4, 1e-4
WEIGHT_DECAY = 0.01
WARMUP_STEPS = 15
SAVE_EVERY = 25

INSTRUCTED_EVERY, INSTRUCTED_FROM = 3, 0.8
"""The instruction is a third of the tokens: it follows the questions of every third step, and of all after that share."""


def read_batch(recipe: SmolVLM135M, model: Any, decoder: FastDecoder, batch: ConversationBatch) -> ConversationFeatures:
    """Run tower, connector and fast decoder."""
    patches = recipe.image_tokens(model, batch.images.image)
    embed = model.get_input_embeddings()
    is_image = (batch.prefix_ids == model.config.image_token_id)[..., None]
    prefix = embed(batch.prefix_ids).masked_scatter(is_image, patches)
    states, last = decoder(prefix, embed(batch.input_ids), batch.rows)
    return ConversationFeatures(patches, states, last)


def train(smollm2: Path, folder: Path, steps: int, seed: int = 0) -> None:
    """Train, or resume from the checkpoint in `folder`, and write the trained tensors there as trained.pt.

    Args:
        smollm2: Folder that `prepare` made.
        folder: Of the checkpoint and of what was trained.
        steps: All steps of the schedule.
        seed: Of LoRA's first weights, scenes and questions.
    """
    recipe = SmolVLM135M()
    tokenizer = load_tokenizer(smollm2)
    model = build_model(smollm2, tokenizer)
    print(f"R2 of the connector's ridge regression: {start_connector(recipe, model, tokenizer):.3f}", flush=True)
    batches = ConversationBatches(recipe, tokenizer, seed, IMAGES_PER_STEP)
    torch.manual_seed(seed)
    heads = ConversationHeads(model.config.text_config.hidden_size)
    decoder = FastDecoder(model.model.text_model, compiled=shutil.which("g++") is not None)
    model.requires_grad_(False)
    parts: dict[str, nn.Module] = {"lora": decoder, "heads": heads, **recipe.eyes(model)}
    for part in parts.values():
        part.requires_grad_(True)
    rates = {"lora": LORA_RATE, "heads": LORA_RATE, "connector": CONNECTOR_RATE, "vision": TOWER_RATE}
    optimizer = adamw([(list(part.parameters()), rates[name]) for name, part in parts.items()], WEIGHT_DECAY)

    def step(index: int) -> StepResult:
        instructed = index % INSTRUCTED_EVERY == 0 or index >= INSTRUCTED_FROM * steps
        batch = batches(index, described=False, instructed=instructed)
        losses = losses_of_features(recipe, model, heads, read_batch(recipe, model, decoder, batch), batch)
        shown = " ".join(f"{name} {float(losses[name].detach()):.4f}" for name in ("loss", "words", "right"))
        print(f"step {index} {shown} questions {len(batch.rows)} cpu {time.process_time():.1f} s", flush=True)
        return losses

    schedule = partial(learning_rate_factor, steps=steps, warmup=WARMUP_STEPS / steps, schedule="cosine")
    Trainer(parts, optimizer, steps, schedule, folder / "training.pt", SAVE_EVERY).run(step, "questions")
    torch.save({name: part.state_dict() for name, part in parts.items()}, folder / "trained.pt")
