"""Fixtures that several rooms share: a tiny METER with a supernet, and a tiny data set in VQAv2's format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from das_gym.adaptation import Adaptation
from das_gym.data.shapes import write_shapes
from das_gym.data.vqav2 import answer_vocabulary, load_vqav2
from das_gym.problem import MINI, Problem, ProblemConfig, build_problem, load_backbone
from das_gym.tasks.vqa import VQATask

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few scenes and their questions."""
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data", seed=5, train_scenes=40, val_scenes=40)


@pytest.fixture(scope="session")
def random_supernet(tmp_path_factory: pytest.TempPathFactory, shapes_folder: Path) -> Path:
    """A supernet of METER-mini for `shapes_folder` whose parameters are random and large: masks differ a lot."""
    backbone = load_backbone(ProblemConfig())
    task = VQATask(backbone.processor, answer_vocabulary(load_vqav2(shapes_folder).train, min_count=1))
    torch.manual_seed(1)
    head = task.build_head(backbone.vlp.feature_size)
    for parameter in [*backbone.vlp.tunable_state().values(), *head.parameters()]:
        torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("supernet") / "supernet.safetensors"
    Adaptation.of(backbone.vlp, head, task="vqa", answers=task.answers, base=backbone.base).save(path)
    return path


@pytest.fixture(scope="session")
def tiny_kwargs(shapes_folder: Path, random_supernet: Path) -> dict[str, str]:
    """What to pass to `gymnasium.make` for the tiny problem."""
    return {"data_root": str(shapes_folder), "supernet": str(random_supernet)}


@pytest.fixture(scope="session")
def tiny_problem(tiny_kwargs: dict[str, str]) -> Problem:
    """The tiny problem itself; do not train it."""
    return build_problem(ProblemConfig(**tiny_kwargs))


@pytest.fixture(scope="session")
def mini_folder() -> Path:
    """The bundled checkpoint."""
    return MINI
