"""Pre-train METER-mini, ViLT-mini, SmolVLM-mini or LLaVA-mini: the shipped checkpoints come from here.

    python -m benchmarks.pretrain METER --out FOLDER        continues from runs/pretrain/METER, if it was stopped

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

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from das_gym.adapt.training import StepResult, Trainer, adamw, learning_rate_factor
from torch import nn

from benchmarks.harness import make_parser
from benchmarks.pretrain.answering_models import LlavaMini, SmolVLMMini
from benchmarks.pretrain.batches import CaptionBatches, image_batch
from benchmarks.pretrain.conversations import ConversationBatches
from benchmarks.pretrain.family import AnsweringRecipe, PairRecipe, Recipe, Size
from benchmarks.pretrain.losses import (
    ConversationHeads,
    PretrainHeads,
    caption_losses,
    conversation_losses,
    image_losses,
    image_token_losses,
)
from benchmarks.pretrain.pair_models import MeterMini, ViltMini
from benchmarks.pretrain.tokenizer import tokenizer_files, train_chat_tokenizer, train_tokenizer
from das_gym.commands.progress import bars_on_terminals
from das_gym.files import write_json
from das_gym.models.checkpoints import save_checkpoint

RECIPES: dict[str, Recipe] = {"METER": MeterMini(), "ViLT": ViltMini(), "SmolVLM": SmolVLMMini(), "LLaVA": LlavaMini()}
"""The models that can be pre-trained. A new one is a file next to these and an entry here."""

CHECKPOINTS = ("image.pt", "fusion.pt")
"""Names of the intermediate checkpoints of both parts."""

SAVE_EVERY = 250
"""Steps between checkpoints."""

BOTTLENECK = 16
"""Width of the parallel adapters that METER and ViLT get after pre-training."""

IMAGE_LEARNING_RATE = 2e-3
WARMUP = 0.04
WEIGHT_DECAY = 0.01

DESCRIBED = 0.6
"""Share of the second part's steps in which scenes are described too."""

Train = Callable[[str, dict[str, nn.Module], Callable[[int], StepResult]], None]
"""Trains parts, by name, with a step function; the title is that of the first part, `images`, or of the second."""


def pretrain(name: str, size: Size, out: Path, checkpoints: Path, seed: int = 0) -> None:
    """Pre-train a model and write its checkpoint.

    Args:
        name: Key of `RECIPES`, whose `size` made the shipped checkpoint.
        size: Settings of model and training.
        out: Folder to write to. METER's and ViLT's holds the image-text matching head too, `itm_score`, row 1 = they match.
            An answering model is written as `from_pretrained` reads it, its weights in float16.
        checkpoints: Folder of intermediate checkpoints; training resumes from them.
        seed: Of weights, scenes and texts.
    """
    recipe = RECIPES[name]

    def train(title: str, parts: dict[str, nn.Module], step: Callable[[int], StepResult]) -> None:
        first = title == "images"
        steps, rate = (size.image_steps, IMAGE_LEARNING_RATE) if first else (size.steps, size.learning_rate)
        parameters = [p for part in parts.values() for p in part.parameters() if p.requires_grad]
        optimizer = adamw([(parameters, rate)], WEIGHT_DECAY)
        schedule = partial(learning_rate_factor, steps=steps, warmup=WARMUP)
        checkpoint = checkpoints / CHECKPOINTS[not first]
        Trainer(parts, optimizer, steps, schedule, checkpoint, SAVE_EVERY).run(step, title)

    if isinstance(recipe, PairRecipe):
        _pretrain_pairs(recipe, size, seed, out, train)
    elif isinstance(recipe, AnsweringRecipe):
        _pretrain_answering(recipe, size, seed, out, train)


def _pretrain_pairs(recipe: PairRecipe, size: Size, seed: int, out: Path, train: Train) -> None:
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(seed, recipe.tokens)
    bare: Any = recipe.build(size.hidden_size, len(tokenizer), 0)
    recipe.initialise(bare)
    for name, parameter in bare.named_parameters():
        parameter.requires_grad_("adapter" not in name)
    heads = PretrainHeads(size.hidden_size, bare.feature_size, len(tokenizer))

    def name_patches(index: int) -> StepResult:
        batch = image_batch(seed, index, size.image_batch_size, recipe.normalise)
        return image_losses(heads, recipe.early_patches(bare, batch.image), batch)

    train("images", {**recipe.image_parts(bare), "heads": heads.dense()}, name_patches)
    batches = CaptionBatches(tokenizer, seed, size.batch_size, recipe.normalise)

    def read_captions(index: int) -> StepResult:
        batch = batches(index)
        inputs = {"image": batch.scenes.image, "input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        return caption_losses(heads, recipe.features(bare, inputs), batch)

    train("captions", {"model": bare, "heads": heads}, read_captions)
    model = recipe.build(size.hidden_size, len(tokenizer), BOTTLENECK)
    model.load_state_dict(bare.state_dict(), strict=False)
    adapters = [name for name in model.state_dict() if "adapter" in name]
    match = {"itm_score": heads.match.state_dict()}
    save_checkpoint(out, model, heads=match, files=tokenizer_files(tokenizer), leave_out=adapters)


def _pretrain_answering(recipe: AnsweringRecipe, size: Size, seed: int, out: Path, train: Train) -> None:
    tokenizer = train_chat_tokenizer(recipe.tokens, seed)
    model = recipe.build(size.hidden_size, tokenizer)
    torch.manual_seed(seed)
    recipe.initialise(model)
    heads = ConversationHeads(size.hidden_size)

    def look(index: int) -> StepResult:
        batch = image_batch(seed, index, size.image_batch_size, recipe.normalise)
        return image_token_losses(heads, recipe.image_tokens(model, batch.image), batch)

    train("images", {**recipe.eyes(model), "heads": heads.dense()}, look)
    batches = ConversationBatches(recipe, tokenizer, seed, size.batch_size)

    def talk(index: int) -> StepResult:
        return conversation_losses(recipe, model, heads, batches(index, index < DESCRIBED * size.steps))

    train("questions", {"model": model, "heads": heads}, talk)
    with bars_on_terminals():
        model.half().save_pretrained(out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    write_json(out / "config.json", config | {"dtype": "float32"})  # float16 weights load as float32
    tokenizer.backend_tokenizer.no_padding()  # of the last batch
    recipe.make_processor(tokenizer).save_pretrained(out)


def main(arguments: Sequence[str] | None = None) -> None:
    """Pre-train and write the checkpoint."""
    parser = make_parser("pretrain", __doc__)
    parser.add_argument("model", choices=RECIPES)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the checkpoint to")
    options = parser.parse_args(arguments)
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        parser.error(f"--out {options.out} exists and is not empty: pass a new folder")
    folder = Path("runs") / "pretrain" / options.model
    pretrain(options.model, RECIPES[options.model].size, options.out, folder)
    for name in CHECKPOINTS:
        (folder / name).unlink(missing_ok=True)
    print(f"checkpoint: {options.out}")
