"""The models of the suite: the bundled minis with other depths and weights, trained on for a minute each."""

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
from das_gym.files import replacing_folder
from das_gym.models.base import fingerprint
from das_gym.models.checkpoints import load_checkpoint, save_checkpoint
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_backbone, load_splits, restore
from das_gym.registration import MODELS

DEPTHS = {"METER": (("text_layers", "image_layers"), "fusion_layers"), "ViLT": (("blocks",), "num_layers")}
"""By model: its lists of layers, and the config entry with their length."""

DECODER_BATCH = 6
DECODER_RATE = 5e-4
"""Images a step, and the learning rate, of training a decoder on."""


@dataclass(frozen=True)
class SuiteModel:
    """One model of the suite.

    Attributes:
        name: Of its folder and its table.
        split: Whose problems it gives: `train`, `valid` or `test`.
        model, task: As in `ProblemConfig`.
        kept: Which layers of the bundled model it has, list by list and in their new order: METER's text and image layers,
            ViLT's blocks, a decoder's layers.
        seed: Of noise, masks, batches and data.
        noise: Standard deviation of what is added to each matrix, in those of the matrix.
        skip_adapters: Whether adapters stand in for skipped layers; else they are left out.
        steps: Of training adapters and head, and of all that is left of a decoder; 0 trains nothing.
        max_skipped: Each step skips 0..max_skipped units, every number as likely; of a decoder none.
        units: As in `ProblemConfig`, of a decoder.
        checkpoint: Name of the bundled checkpoint that it comes from, where a model has several; None is the usual one.
    """

    name: str
    split: str
    model: str
    task: str
    kept: tuple[tuple[int, ...], ...]
    seed: int
    noise: float = 0.0
    skip_adapters: bool = True
    steps: int = 60
    max_skipped: int = 4
    units: str | None = None
    checkpoint: str | None = None


def make_model(spec: SuiteModel, data: Path, folder: Path) -> ProblemConfig:
    """Write a model, train and write its supernet, and return its problem; it resumes from the content of the folder."""
    given: dict[str, Any] = {"model": spec.model, "task": spec.task, "data_root": str(data)}
    if spec.model not in DEPTHS:
        if not folder.is_dir():
            _write_decoder(spec, folder)
        return ProblemConfig(**given, checkpoint=str(folder), units=spec.units)
    checkpoint = folder / "model"
    supernet = folder / "supernet.safetensors"
    first = folder / "first.safetensors"
    if not first.is_file():
        _write_pairs_model(spec, checkpoint, first)
    problem = ProblemConfig(**given, checkpoint=str(checkpoint))
    if spec.steps == 0:
        return dataclasses.replace(problem, supernet=str(first))
    if not supernet.is_file():
        _train(spec, problem, first, supernet)
    return dataclasses.replace(problem, supernet=str(supernet))


def _train(spec: SuiteModel, problem: ProblemConfig, first: Path, out: Path) -> None:
    """Train what the bundled supernet left in `first` on, and write it."""
    splits = load_splits(problem)
    torch.manual_seed(spec.seed)
    model = restore(load_backbone(problem), Adaptation.load(first), spec.task, first)
    pairs = 32 // model.task.passes if model.task.passes > 1 else 32
    config = SupernetConfig(steps=spec.steps, batch_size=max(pairs, 2), seed=spec.seed, max_skipped=spec.max_skipped)
    step_loss, trainer = make_loss_and_trainer(model, splits.train, config, out.with_suffix(".pt"))
    n_layers = len(model.backbone.vlp.layers)

    def step(index: int) -> StepResult:
        return step_loss(index, random_mask(spec.seed, index, n_layers, spec.max_skipped))

    trainer.run(step, spec.name)
    model.adaptation(kind="supernet", **vars(config)).save(out)
    out.with_suffix(".pt").unlink(missing_ok=True)


def _write_pairs_model(spec: SuiteModel, checkpoint: Path, first: Path) -> None:
    """The kept layers of the bundled model with noise, and those of its supernet."""
    folder = _assets(spec.model)
    bundled: Any = load_checkpoint(folder).vlp
    supernet = Adaptation.load(folder / f"{spec.task}_supernet.safetensors")
    lists, depth = DEPTHS[spec.model]
    sizes = {depth: len(spec.kept[0]), **({} if spec.skip_adapters else {"skip_bottleneck": 0})}
    vlp = type(bundled)(dataclasses.replace(bundled.config, **sizes))
    state = _shortened(bundled.state_dict(), dict(zip(lists, spec.kept, strict=True)))
    vlp.load_state_dict({name: tensor for name, tensor in state.items() if name in vlp.state_dict()}, strict=False)
    _add_noise(vlp, spec)
    adapters = [name for name in vlp.state_dict() if "adapter" in name]
    tokenizer = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("tokenizer*.json"))}
    save_checkpoint(checkpoint, vlp, files=tokenizer, leave_out=adapters)
    stripped = {name.removeprefix("vlp."): tensor for name, tensor in supernet.tensors.items() if name.startswith("vlp.")}
    tuned = _shortened(stripped, dict(zip(lists, spec.kept, strict=True)))
    tensors = {f"vlp.{name}": tuned[name] for name in vlp.tunable_state()}
    tensors |= {name: tensor for name, tensor in supernet.tensors.items() if name.startswith("head.")}
    dataclasses.replace(supernet, tensors=tensors, base=fingerprint(vlp), info={}).save(first)


def _shortened(tensors: Mapping[str, Tensor], kept: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Tensors by name, those of lists of layers numbered again and some left out."""
    found = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        if first not in kept:
            found[name] = tensor
            continue
        number, _, rest = rest.partition(".")
        for new, old in enumerate(kept[first]):
            if old == int(number):
                found[f"{first}.{new}.{rest}"] = tensor
    return found


@torch.no_grad()
def _add_noise(model: torch.nn.Module, spec: SuiteModel) -> None:
    """Other weights: every matrix of a layer moves a little."""
    generator = torch.Generator().manual_seed(spec.seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and any(part.isdigit() for part in name.split(".")):
            parameter.add_(spec.noise * parameter.std() * torch.randn(parameter.shape, generator=generator))


def _write_decoder(spec: SuiteModel, folder: Path) -> None:
    """The kept layers of a bundled decoder, trained on to do without the rest, as transformers reads it."""
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    from das_gym.models.transformers.layer_removal import prune

    source = _assets(spec.model, spec.checkpoint)
    name = "SmolVLM" if spec.checkpoint is None else "LLaVA"
    with bars_on_terminals():
        model = AutoModelForImageTextToText.from_pretrained(source)
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    prune(model, [place not in spec.kept[0] for place in range(count)])
    _add_noise(model, spec)
    recipe = RECIPES[name]
    assert isinstance(recipe, AnsweringRecipe)
    batches = ConversationBatches(recipe, AutoTokenizer.from_pretrained(source), spec.seed, DECODER_BATCH)

    def step(index: int) -> StepResult:
        batch = batches(index, described=False)
        found = words_losses(model, features(recipe, model, batch), batch)
        return {"loss": found.pop("words"), **found}

    optimizer = adamw([(list(model.parameters()), DECODER_RATE)], weight_decay=0.01)
    schedule = functools.partial(learning_rate_factor, steps=spec.steps, warmup=0.1)
    Trainer({"model": model}, optimizer, spec.steps, schedule).run(step, spec.name)
    with replacing_folder(folder) as part:
        with bars_on_terminals():
            model.save_pretrained(part)
        for file in ("chat_template.jinja", "processor_config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(source / file, part / file)


def _assets(model: str, checkpoint: str | None = None) -> Path:
    """Return the folder of a bundled checkpoint."""
    entry = MODELS[model]
    assert entry.assets is not None
    return entry.assets if checkpoint is None else entry.named[checkpoint]
