from __future__ import annotations

import math
from pathlib import Path

import gymnasium
import pytest
import torch

from das_gym.data.images import ImageFile
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, load_backbone, load_problem, new_head
from das_gym.shapes.snli_ve import write_shapes_snli_ve
from das_gym.tasks.snli_ve.files import LABELS, SNLIVEExample
from das_gym.tasks.snli_ve.task import SNLIVETask


@pytest.fixture
def task() -> SNLIVETask:
    return SNLIVETask(processor=None)  # targets and losses read no image


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes_snli_ve(tmp_path_factory.mktemp("data") / "snli", scenes={"train": 2, "dev": 2, "test": 2})


def example(number: int, label: str) -> SNLIVEExample:
    return SNLIVEExample(f"{number}.jpg#0r0", f"hypothesis {number}", ImageFile(Path(f"{number}.png")), LABELS.index(label))


def test_loss_metric_and_predictions_by_hand(task: SNLIVETask):
    examples = [example(0, "entailment"), example(1, "neutral"), example(2, "contradiction")]
    assert [(pair.text, pair.image.key) for pair in task.pairs(examples[:1])] == [("hypothesis 0", "0.png")]
    targets = task.targets(examples)
    logits = torch.tensor([[0.0, 0.0, 2.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    by_hand = [math.log1p(2 * math.exp(-2)), math.log(2 + math.e), math.log(3)]
    assert task.losses(logits, targets).tolist() == pytest.approx(by_hand)
    assert task.metrics(logits, targets)[:2].tolist() == [1.0, 0.0]
    assert task.predictions(examples[:2], logits[:2]) == [
        {"pairID": "0.jpg#0r0", "prediction": "entailment"},
        {"pairID": "1.jpg#0r0", "prediction": "contradiction"},
    ]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["METER", "ViLT"])
def test_environment_requires_a_supernet(model: str, data_root: Path, tmp_path: Path):
    config = ProblemConfig(model=model, task="snli_ve", data_root=str(data_root))
    advice = f"train one with `das-adapt supernet with {model.lower()}_snli_ve '?data_root="
    with pytest.raises(ValueError, match=advice):
        load_problem(config)
    backbone = load_backbone(config)
    task = SNLIVETask(backbone.processor)
    head = new_head(backbone, task)
    assert len(head[3].weight) == len(LABELS)
    path = tmp_path / "supernet.safetensors"
    AdaptedModel(backbone, head, task).adaptation(kind="supernet").save(path)
    assert Adaptation.load(path).task == "snli_ve"
    env = gymnasium.make(f"DAS-{model}-SNLI-VE-v0", data_root=str(data_root), supernet=str(path), skip_num=4)
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step([1] * 4 + [0] * 8)
    assert terminated
    assert reward == pytest.approx(math.exp(-info["loss"]))
