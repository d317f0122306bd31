"""Models of the leaderboard's tables: the bundled minis with some of their layers, trained on for a minute each."""

import dataclasses
import functools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from das_gym.adapt.settings import SupernetConfig
from das_gym.adapt.step_loss import make_loss_and_trainer
from das_gym.adapt.supernet import random_mask
from das_gym.adapt.training import StepResult, Trainer, adamw, learning_rate_factor
from torch import Tensor

from benchmarks.pretrain.conversations import ConversationBatches
from benchmarks.pretrain.family import AnsweringRecipe
from benchmarks.pretrain.losses import features, words_losses
from benchmarks.pretrain.recipe import RECIPES
from das_gym.commands.progress import bars_on_terminals
from das_gym.files import ASSETS, replacing
from das_gym.models.base import fingerprint
from das_gym.models.checkpoints import load_checkpoint, save_checkpoint
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_backbone, load_splits, restore

METER_BATCH = 16
"""Statements of NLVR2 a step of training METER's adapters and head."""

DECODER_BATCH = 6
DECODER_RATE = 5e-4
"""Images a step, and the learning rate, of training a decoder on."""


@dataclass(frozen=True)
class TrainedModel:
    """A model of the leaderboard.

    Attributes:
        name: Of its folder and its table.
        model, task: As in `ProblemConfig`.
        source: Folder of the bundled checkpoint that it comes from.
        kept: Which layers of it the model has, in their new order: METER's text and image layers, or a decoder's layers.
        seed: Of noise, batches and data.
        steps: Of training METER's adapters and head without skipping a layer, or all that is left of a decoder.
        noise: Standard deviation of what is added to each matrix of a decoder's layers, in that of the matrix.
    """

    name: str
    model: str
    task: str
    source: str
    kept: tuple[tuple[int, ...], ...]
    seed: int
    steps: int
    noise: float = 0.0


SMOLVLM_LAYERS = (0, 2, 3, 4, 6, 7, 8, 11)
METER_LAYERS = ((1, 2, 3, 4), (0, 1, 2, 4))
LLAVA_LAYERS = (0, 4, 6, 7, 8, 10, 12, 18, 23)
MODELS = (
    TrainedModel("test-00-vlm-answering", "VLM", "answering", "smolvlm_mini", (SMOLVLM_LAYERS,), 1984746196, 300, 0.05),
    TrainedModel("test-03-meter-nlvr2", "METER", "nlvr2", "meter_mini", METER_LAYERS, 252786914, 30),
    TrainedModel("test-06-llava-answering", "VLM", "answering", "llava_mini", (LLAVA_LAYERS,), 1668700065, 150, 0.075),
)
"""Once drawn at random from a larger plan: the first, fourth and seventh of its test models."""


def make_model(spec: TrainedModel, data: Path, folder: Path) -> ProblemConfig:
    """Write a model, train it, and return its problem; it resumes from the content of the folder."""
    given: dict[str, Any] = {"model": spec.model, "task": spec.task, "data_root": str(data)}
    if spec.model == "VLM":
        if not folder.is_dir():
            _write_decoder(spec, folder)
        return ProblemConfig(**given, checkpoint=str(folder), units="layers")
    checkpoint = folder / "model"
    first = folder / "first.safetensors"
    supernet = folder / "supernet.safetensors"
    if not first.is_file():
        _write_meter(spec, checkpoint, first)
    problem = ProblemConfig(**given, checkpoint=str(checkpoint))
    if not supernet.is_file():
        _train(spec, problem, first, supernet)
    return dataclasses.replace(problem, supernet=str(supernet))


def _train(spec: TrainedModel, problem: ProblemConfig, first: Path, out: Path) -> None:
    """Train what the bundled supernet left in `first` on, and write it."""
    splits = load_splits(problem)
    torch.manual_seed(spec.seed)
    model = restore(load_backbone(problem), Adaptation.load(first), spec.task, first)
    config = SupernetConfig(steps=spec.steps, batch_size=METER_BATCH, seed=spec.seed, max_skipped=0)
    step_loss, trainer = make_loss_and_trainer(model, splits.train, config, out.with_suffix(".pt"))
    n_layers = len(model.backbone.vlp.layers)

    def step(index: int) -> StepResult:
        return step_loss(index, random_mask(spec.seed, index, n_layers, 0))

    trainer.run(step, spec.name)
    model.adaptation(kind="supernet", **vars(config)).save(out)
    out.with_suffix(".pt").unlink(missing_ok=True)


def _write_meter(spec: TrainedModel, checkpoint: Path, first: Path) -> None:
    """Write the kept layers of METER-mini without skip adapters, and those of its supernet."""
    folder = ASSETS / spec.source
    bundled: Any = load_checkpoint(folder).vlp
    supernet = Adaptation.load(folder / f"{spec.task}_supernet.safetensors")
    kept = dict(zip(("text_layers", "image_layers"), spec.kept, strict=True))
    config = dataclasses.replace(bundled.config, fusion_layers=len(spec.kept[0]), skip_bottleneck=0)
    vlp = type(bundled)(config)
    state = _shortened(bundled.state_dict(), kept)
    vlp.load_state_dict({name: tensor for name, tensor in state.items() if name in vlp.state_dict()}, strict=False)
    adapters = [name for name in vlp.state_dict() if "adapter" in name]
    tokenizer = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("tokenizer*.json"))}
    save_checkpoint(checkpoint, vlp, files=tokenizer, leave_out=adapters)
    stripped = {name.removeprefix("vlp."): tensor for name, tensor in supernet.tensors.items() if name.startswith("vlp.")}
    tuned = _shortened(stripped, kept)
    tensors = {f"vlp.{name}": tuned[name] for name in vlp.tunable_state()}
    tensors |= {name: tensor for name, tensor in supernet.tensors.items() if name.startswith("head.")}
    dataclasses.replace(supernet, tensors=tensors, base=fingerprint(vlp), info={}).save(first)


def _shortened(tensors: Mapping[str, Tensor], kept: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return tensors by name, those of lists of layers numbered again and some left out."""
    found = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        if first not in kept:
            found[name] = tensor
            continue
        number, _, rest = rest.partition(".")
        if int(number) in kept[first]:
            found[f"{first}.{kept[first].index(int(number))}.{rest}"] = tensor
    return found


def _write_decoder(spec: TrainedModel, folder: Path) -> None:
    """Write the kept layers of a bundled decoder, trained on to do without the rest, as transformers reads it."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    from das_gym.models.transformers.layer_removal import prune

    source = ASSETS / spec.source
    with bars_on_terminals():
        model = AutoModelForImageTextToText.from_pretrained(source)
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    prune(model, [place not in spec.kept[0] for place in range(count)])
    _add_noise(model, spec)
    recipe = RECIPES["LLaVA" if spec.source == "llava_mini" else "SmolVLM"]
    assert isinstance(recipe, AnsweringRecipe)
    batches = ConversationBatches(recipe, AutoTokenizer.from_pretrained(source), spec.seed, DECODER_BATCH)

    def step(index: int) -> StepResult:
        batch = batches(index, described=False)
        found = words_losses(model, features(recipe, model, batch), batch)
        return {"loss": found.pop("words"), **found}

    optimizer = adamw([(list(model.parameters()), DECODER_RATE)], weight_decay=0.01)
    schedule = functools.partial(learning_rate_factor, steps=spec.steps, warmup=0.1)
    Trainer({"model": model}, optimizer, spec.steps, schedule).run(step, spec.name)
    with replacing(folder, is_folder=True) as part:
        with bars_on_terminals():
            model.save_pretrained(part)
        for file in ("chat_template.jinja", "processor_config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(source / file, part / file)


@torch.no_grad()
def _add_noise(model: torch.nn.Module, spec: TrainedModel) -> None:
    """Move every matrix of a layer a little."""
    generator = torch.Generator().manual_seed(spec.seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and any(part.isdigit() for part in name.split(".")):
            parameter.add_(spec.noise * parameter.std() * torch.randn(parameter.shape, generator=generator))
