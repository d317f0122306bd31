"""A random METER of 6 layers with a supernet: all of its 64 masks are scored in no time."""

import json
from pathlib import Path
from typing import Any

import torch

from das_gym.data.splits import Splits
from das_gym.models.checkpoints import save_checkpoint
from das_gym.models.meter.model import METER
from das_gym.models.meter.network import METERConfig
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, find_supernet, load_backbone, supernet_model
from das_gym.registration import ASSETS
from das_gym.tasks.vqa.files import answer_vocabulary, load_vqa
from das_gym.tasks.vqa.task import VQATask


def small_world(folder: Path, data: Path, **sizes: int) -> dict[str, str]:
    """What to pass to `ProblemConfig` for it.

    Args:
        folder: Where model and supernet are written.
        data: Shapes in VQAv2's format.
        **sizes: Fields of `METERConfig` that differ, such as `bottleneck=0`.
    """
    torch.manual_seed(2)
    mini = ASSETS / "meter_mini"
    config = json.loads((mini / "config.json").read_text())["config"]
    model = METER(METERConfig(**{**config, "fusion_layers": 3, "vision_layers": 1, "text_layers": 1, **sizes}))
    save_checkpoint(folder / "meter", model, files={"tokenizer.json": (mini / "tokenizer.json").read_text()})
    kwargs = {"checkpoint": str(folder / "meter"), "tokenizer": str(mini), "data_root": str(data)}
    backbone = load_backbone(ProblemConfig(**kwargs))
    task = VQATask(backbone.processor, answer_vocabulary(load_vqa(data).train, min_count=1))
    head = task.build_head(backbone.vlp.feature_size)
    for parameter in [*backbone.vlp.tunable_state().values(), *head.parameters()]:
        torch.nn.init.normal_(parameter, std=0.1)
    path = folder / "supernet.safetensors"
    Adaptation.from_model(backbone.vlp, head, task="vqa", answers=task.labels, base=backbone.base).save(path)
    return {**kwargs, "supernet": str(path)}


def load_supernet(config: ProblemConfig, splits: Splits[Any]) -> AdaptedModel:
    """Model, head and task with a supernet's parameters, which may be trained."""
    return supernet_model(config, find_supernet(config), splits, load_backbone(config))
