"""Worker processes read images ahead: the same training to the bit, the same errors, and no process left behind."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from functools import partial

import psutil
import pytest
import torch
from das_gym.adapt.finetuning import with_new_head
from das_gym.adapt.joint_search import Training, finetune_subnet, new_model
from das_gym.adapt.paper import das_settings
from das_gym.adapt.prefetching import Prefetcher
from das_gym.adapt.settings import Hardware, TrainingConfig
from das_gym.adapt.step_loss import StepLoss, make_loss_and_trainer
from das_gym.adapt.training import StepResult, Trainer

from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_backbone, load_splits

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on a machine of one core

Logged = list[tuple[str, float, int]]


@pytest.fixture
def problem(bare_kwargs) -> ProblemConfig:
    return ProblemConfig(**bare_kwargs)


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    assert not psutil.wait_procs(left, timeout=10)[1]


def new_training(problem: ProblemConfig, workers: int, **settings: int) -> tuple[StepLoss, Trainer]:
    splits = load_splits(problem)
    config = TrainingConfig(**{"steps": 6, "batch_size": 4, "dataloader_num_workers": workers, **settings})
    torch.manual_seed(config.seed)
    return make_loss_and_trainer(with_new_head(load_backbone(problem), problem.task, splits), splits.train, config, None)


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def stopped_at(step_loss: StepLoss, last: int, step: int) -> Iterator[StepResult]:
    if step == last:
        raise KeyboardInterrupt
    return step_loss.parts(step)


@pytest.mark.slow
def test_prefetcher_changes_no_bit_with_augmentation_dropout_and_resume(problem, tmp_path):
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
    assert results[0][1]
    assert all(same(weights, results[0][0]) and logged == results[0][1] for weights, logged in results[1:])


@pytest.mark.slow
def test_prefetcher_changes_no_bit_of_prompts(tiny_llava):
    problem = ProblemConfig("VLM", "answering", **tiny_llava)
    found = []
    for workers in (0, 1):
        step_loss, trainer = new_training(problem, workers, micro_batch_size=2)
        trainer.run(step_loss.parts, "training")
        found.append([p.detach() for p in step_loss.vlp.parameters()])
    assert same(*found)


@pytest.mark.slow
def test_prefetched_images_are_those_that_training_reads(problem, monkeypatch):
    step_loss, trainer = new_training(problem, 2, encoder_cache_gib=0)
    kind, read_here = type(step_loss.prefetcher.processor), []  # workers append to lists of their own
    read = kind.read
    monkeypatch.setattr(kind, "read", lambda *each: (read_here.append(each), read(*each))[1])
    trainer.run(step_loss.parts, "training")
    assert read_here == []


@pytest.mark.slow
def test_prefetcher_keeps_the_error_of_a_bad_image(problem, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(problem.data_root, folder)
    moved = ProblemConfig(**{**vars(problem), "data_root": str(folder)})
    damaged = load_splits(moved).train[5].image.path
    damaged.write_bytes(damaged.read_bytes()[:300])
    found = []
    for workers in (0, 1):
        step_loss, trainer = new_training(moved, workers, steps=40, batch_size=8)
        with pytest.raises((FileNotFoundError, ValueError), match=damaged.name) as error:
            trainer.run(step_loss.parts, "training")
        found.append((type(error.value), str(error.value), trainer.step))
    assert found[0] == found[1]


def test_prefetcher_rejects_a_processor_that_cannot_read_ahead():
    with pytest.raises(ValueError, match="`dataloader_num_workers` is not supported by function"):
        Prefetcher(lambda pairs, augment=None: {}, lambda step: [], 1)


@pytest.mark.slow
def test_terminated_workers_raise_no_error_elsewhere(problem):
    """A scheduler signals the whole process group; the training process has to stop in its own way."""
    step_loss, _ = new_training(problem, 2, encoder_cache_gib=0)
    for step in range(2):  # each of the two workers has read a batch: they start one after the other
        step_loss.prefetcher.load(step, 0)
    workers = [str(worker.pid) for worker in psutil.Process().children()]
    subprocess.run(["kill", "-TERM", *workers], check=True)  # torch's workers ignore the signal of their own parent
    for _ in range(20):  # torch's handler of SIGCHLD would raise here
        time.sleep(0.1)
    step_loss.prefetcher.close()
