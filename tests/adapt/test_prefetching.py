"""Worker processes read images ahead: the same training to the bit, the same errors, and no process left behind."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from das_gym.adapt.das import Training, finetune_subnet, new_model
from das_gym.adapt.finetune import with_new_head
from das_gym.adapt.hardware import Hardware
from das_gym.adapt.paper import das_settings
from das_gym.adapt.prefetching import Prefetcher
from das_gym.adapt.step_loss import StepLoss, set_up
from das_gym.adapt.training import StepResult, TrainingConfig

from das_gym.data.splits import Splits
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, load_backbone, load_splits
from tests.models.transformers import tiny
from tests.tasks.answering.making import llava_folder

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a machine of one core

Logged = list[tuple[str, float, int]]


@pytest.fixture
def problem(small_kwargs: dict[str, str]) -> ProblemConfig:
    return ProblemConfig(**{name: value for name, value in small_kwargs.items() if name != "supernet"})


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Every process that a test started has ended with it."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert not psutil.wait_procs(left, timeout=10)[1]


def untrained(problem: ProblemConfig, splits: Splits[Any]) -> AdaptedModel:
    return with_new_head(load_backbone(problem), problem.task, splits)


def trained(problem: ProblemConfig, workers: int, **settings) -> tuple[list[torch.Tensor], Logged]:
    """Return the weights and the logged losses of a fine-tuning."""
    splits, logged = load_splits(problem), Logged()
    subnet = untrained(problem, splits)
    config = TrainingConfig(**{"steps": 6, "batch_size": 4, "dataloader_num_workers": workers, **settings})
    torch.manual_seed(config.seed)
    step_loss, trainer = set_up(subnet, splits.train, config, None)
    trainer.run(step_loss.parts, "training", lambda *entry: logged.append(entry))
    return [p.detach() for p in subnet.backbone.vlp.parameters()], logged


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def stopped_at(step_loss: StepLoss, last: int, step: int) -> Iterator[StepResult]:
    if step == last:
        raise KeyboardInterrupt
    return step_loss.parts(step)


@pytest.mark.slow
def test_prefetcher_changes_no_bit_with_augmentation_dropout_and_resume(problem: ProblemConfig, tmp_path: Path):
    pytest.importorskip("torchvision")
    splits = load_splits(problem)
    changes = {"batch_size": len(splits.train) // 6, "finetune_epochs": 1, "augment": True, "dropout": 0.1}
    settings = das_settings("METER", "vqa", **changes, bottleneck=16, skip_bottleneck=48)
    results = []
    for workers, stop in ((0, None), (2, None), (2, 4)):
        logged = Logged()

        def training(workers: int = workers) -> Training:
            model = new_model(problem, splits, settings, seed=0)
            torch.manual_seed(0)
            return Training(model, splits, settings, 0, Hardware(dataloader_num_workers=workers))

        checkpoint = tmp_path / f"{workers}_{stop}.pt"
        if stop is not None:
            first = training()
            trainer = first.trainer(6, checkpoint, 3)
            with pytest.raises(KeyboardInterrupt):
                trainer.run(partial(stopped_at, first.step_loss, stop), "stopped")
        again = training()
        finetune_subnet(again, checkpoint, lambda *entry, to=logged: to.append(entry), save_every=3)
        results.append(([p.detach() for p in again.model.backbone.vlp.parameters()], logged))
    assert len(results[0][1]) == 2
    assert all(same(weights, results[0][0]) and logged == results[0][1] for weights, logged in results[1:])


@pytest.mark.slow
def test_prefetcher_keeps_the_error_of_a_bad_image(problem: ProblemConfig, tmp_path: Path):
    folder = tmp_path / "data"
    shutil.copytree(problem.data_root, folder)
    moved = ProblemConfig(**{**vars(problem), "data_root": str(folder)})
    splits = load_splits(moved)
    damaged = splits.train[5].image.path
    damaged.write_bytes(damaged.read_bytes()[:300])
    told = []
    for workers in (0, 1):
        config = TrainingConfig(steps=40, batch_size=8, dataloader_num_workers=workers)
        step_loss, trainer = set_up(untrained(moved, splits), splits.train, config, None)
        with pytest.raises((FileNotFoundError, ValueError)) as error:
            trainer.run(step_loss.parts, "training")
        told.append((type(error.value), str(error.value), trainer.step))
    assert told[0] == told[1]
    assert str(damaged) in told[0][1]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch may notice once more at the end
def test_killed_worker_ends_training(problem: ProblemConfig):
    splits = load_splits(problem)
    config = TrainingConfig(batch_size=4, dataloader_num_workers=2, encoder_cache_gib=0.0)
    step_loss, trainer = set_up(untrained(problem, splits), splits.train, config, None)

    def step(number: int) -> Iterator[StepResult]:
        if number == 1:
            for child in psutil.Process().children():
                child.send_signal(signal.SIGKILL)
        return step_loss.parts(number)

    with pytest.raises(RuntimeError, match="DataLoader worker"):
        trainer.run(step, "training")


@pytest.mark.slow
def test_prefetcher_reads_prompts(tmp_path: Path):
    tiny.save("llava", tmp_path / "model")
    llava_folder(tmp_path / "data", train=12, test=4)
    problem = ProblemConfig("VLM", "answering", checkpoint=str(tmp_path / "model"), data_root=str(tmp_path / "data"))
    alone, curve = trained(problem, 0, steps=4)
    read, other = trained(problem, 1, steps=4)
    assert same(alone, read)
    assert curve == other


def test_prefetcher_rejects_a_processor_that_cannot_read_ahead():
    with pytest.raises(ValueError, match="`dataloader_num_workers` is not supported by function"):
        Prefetcher(lambda pairs, augment=None: {}, lambda step: [], 1)
