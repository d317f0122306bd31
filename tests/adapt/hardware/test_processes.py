"""Two processes train as one does with the same batch size; micro-batches, precision and trackers."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from das_gym.adapt.hardware import make_accelerator, process_share
from das_gym.adapt.settings import Hardware, SupernetConfig, TrainingConfig
from das_gym.adapt.step_loss import StepLoss, make_loss_and_trainer
from das_gym.adapt.supernet import train_supernet

from das_gym.files import read_json
from das_gym.models.tensor_files import read_safetensors
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_splits
from tests.small_world import load_supernet

REPOSITORY = Path(__file__).parents[3]
STEPS = {"steps": 51, "batch_size": 5, "save_every": 51}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


TRAIN = (str(REPOSITORY / "tests/adapt/hardware/train.py"),)


def start(rank: int, port: int, *words: str, program: Sequence[str] = TRAIN, processes: int = 2) -> subprocess.Popen:
    """One of some processes, in the environment that torchrun gives it."""
    places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    more = {
        "WORLD_SIZE": str(processes),
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, "-W", "ignore", *program, *words]
    return subprocess.Popen(command, env={**os.environ, **places, **more}, stderr=subprocess.PIPE, text=True)


def finish(processes: Sequence[subprocess.Popen], seconds: int = 300) -> None:
    """Wait for processes that end well."""
    for process in processes:
        _, told = process.communicate(timeout=seconds)
        assert process.returncode == 0, told


@pytest.mark.slow
def test_training_in_two_processes_equals_one(bare_kwargs, tmp_path):
    """A batch of 5 is split 2 and 3, so that a mean of means would be wrong; masks leave parameters without gradients."""
    port, two = free_port(), tmp_path / "two"
    two.mkdir()
    trackers = ["tensorboard"] if find_spec("tensorboard") else []
    words = (json.dumps(bare_kwargs), json.dumps({**STEPS, "trackers": trackers}), str(two))
    both = [start(rank, port, *words) for rank in (0, 1)]
    logged: list[tuple[str, float, int]] = []
    one = train_supernet(
        SupernetConfig(**STEPS), ProblemConfig(**bare_kwargs), tmp_path / "one.safetensors", log=lambda *e: logged.append(e)
    )
    finish(both)
    theirs = json.loads((two / "logged.json").read_text())
    assert [(name, step) for name, _, step in theirs] == [(name, step) for name, _, step in logged]
    for mine, other in zip(logged, theirs, strict=True):
        assert other[1] == pytest.approx(mine[1], rel=1e-4)
    weights, others = (read_safetensors(path).tensors for path in (one, two / "supernet.safetensors"))
    torch.testing.assert_close(others, weights, atol=1e-3, rtol=1e-5)
    assert len(torch.load(two / "checkpoint.pt", weights_only=True)["rng"]) == 2
    assert [(two / f"failed{rank}.txt").read_text() for rank in (0, 1)] == ["the loss is nan"] * 2


@pytest.mark.long
def test_training_in_two_processes_supports_transformers(tiny_llava, tmp_path):
    """It is examined when it is loaded, for which only the first process can save and reload it."""
    problem = {"model": "VLM", "task": "answering", **tiny_llava}
    settings, port = {"steps": 4, "batch_size": 5}, free_port()
    both = [start(rank, port, json.dumps(problem), json.dumps(settings), str(tmp_path)) for rank in (0, 1)]
    one = train_supernet(SupernetConfig(**settings), ProblemConfig(**problem), tmp_path / "one.safetensors")
    finish(both)
    weights, others = (read_safetensors(path).tensors for path in (one, tmp_path / "supernet.safetensors"))
    torch.testing.assert_close(others, weights, atol=1e-3, rtol=1e-5)


@pytest.mark.long
def test_recovery_in_two_processes_equals_one(tiny_llava, tmp_path):
    """The main process saves and measures; the control, which it asks for, trains in both."""
    given = [f"{name}={value}" for name, value in tiny_llava.items()]
    words = ["with", *given, "mask=[0,1,0,1]", "control=True", "device=cpu"]
    words += ["train.steps=4", "train.batch_size=5", "train.micro_batch_size=2", "train.learning_rate=0.01"]
    shrink = ("-m", "adapt", "shrink")

    def places(name: str) -> tuple[str, str]:
        return f"out={tmp_path / name}", f"runs_dir={tmp_path / 'runs' / name}"

    port = free_port()
    started = [start(rank, port, *words, *places("two"), program=shrink) for rank in (0, 1)]
    started += [start(0, free_port(), *words, *places("one"), program=shrink, processes=1)]
    finish(started, 500)
    folders = (tmp_path / "one", tmp_path / "two", Path(tiny_llava["checkpoint"]))
    weights, others, before = (read_safetensors(folder / "model.safetensors").tensors for folder in folders)
    (query,) = (name for name in weights if "language" in name and name.endswith("layers.0.self_attn.q_proj.weight"))
    assert not torch.allclose(weights[query], before[query], atol=1e-3)
    torch.testing.assert_close(others, weights, atol=1e-4, rtol=1e-5)
    controls = [read_json(tmp_path / "runs" / name / "1" / "shrink.json")["control"] for name in ("one", "two")]
    assert controls[0]["loss"] == pytest.approx(controls[1]["loss"], rel=1e-4)


def gradients_of(step_loss: StepLoss, losses: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    for loss in losses:
        loss.backward()
    return {name: p.grad for name, p in step_loss.vlp.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("micro", [1, 3])
def test_micro_batches_add_up_to_the_gradient_of_the_batch(small_kwargs, micro):
    config = ProblemConfig(**small_kwargs)
    splits = load_splits(config)
    gradients = []
    for size in (None, micro):
        training = TrainingConfig(batch_size=5, micro_batch_size=size)
        step_loss, _ = make_loss_and_trainer(load_supernet(config, splits), splits.train, training, None)
        losses = [part["loss"] for part in step_loss.parts(3)]
        assert len(losses) == (1 if size is None else -(-5 // size))
        assert float(sum(losses).detach()) == pytest.approx(float(step_loss(3)["loss"].detach()), rel=1e-5)
        gradients.append(gradients_of(step_loss, losses))
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_keeps_less_and_changes_no_bit(small_kwargs):
    config = ProblemConfig(**small_kwargs)
    splits = load_splits(config)
    kept, gradients = [], []
    for again in (False, True):
        training = TrainingConfig(batch_size=4, gradient_checkpointing=again)
        step_loss, _ = make_loss_and_trainer(load_supernet(config, splits), splits.train, training, None)
        kept.append(step_loss.activation_bytes())
        gradients.append(gradients_of(step_loss, [step_loss(0)["loss"]]))
    assert kept[1] < kept[0] / 2
    torch.testing.assert_close(*gradients, atol=0, rtol=0)


def test_mixed_precision_computes_in_bfloat16(small_kwargs):
    config = ProblemConfig(**small_kwargs)
    splits = load_splits(config)
    model = load_supernet(config, splits)
    seen = set()
    model.backbone.vlp.text_layers[0].layer.feed_in.register_forward_hook(lambda m, a, output: seen.add(output.dtype))
    step_loss, trainer = make_loss_and_trainer(
        model, splits.train, TrainingConfig(steps=1, batch_size=2, mixed_precision="bf16"), None
    )
    trainer.run(step_loss.parts, "16 bits")
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in model.backbone.vlp.parameters()} == {torch.float32}


def test_process_share_covers_all_examples_once(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    parts = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        parts += process_share(range(8))
    assert parts == list(range(8))
    with pytest.raises(ValueError, match="`batch_size` is too small: got 2, expected 3"):
        process_share(range(2))


def test_hardware_rejects_an_unknown_tracker():
    with pytest.raises(ValueError, match="did you mean 'tensorboard'"):
        Hardware(trackers=("tensorbord",))


def test_fp16_needs_a_gpu():
    with pytest.raises(ValueError, match="`mixed_precision=fp16` needs a GPU"):
        make_accelerator(Hardware(mixed_precision="fp16"), torch.device("cpu"))
