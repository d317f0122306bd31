"""Estimates of `adapt` and `shrink`, and what is shared in memory: one model for search, teacher and student."""

import gc
import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from das_gym.adapt.hardware import checkpointed_bytes, training_bytes
from das_gym.adapt.run_commands import adapt, das, shrink, supernet
from das_gym.adapt.run_commands import compare as adapt_compare
from das_gym.adapt.shrinking.recovery import Teacher, checkpointed_layers, insert_trainable, recovery_loss
from das_gym.adapt.shrinking.settings import RecoveryConfig
from das_gym.agents.run_commands import compare, pareto, search, table

from das_gym.engine.tree import saved_bytes
from das_gym.models.transformers.layer_removal import pruned_copy
from tests.adapt.conftest import MASK


def estimate_of(command: Any, settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    command.run({**settings, "estimate": True, "runs_dir": str(tmp_path / "runs")})
    assert not (tmp_path / "runs").exists()  # an estimate is no run
    return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("estimate: "))


def names_in(line: str) -> list[str]:
    return re.findall(r"([a-z][a-z ]*?) (?:\d+ h )?(?:\d+ min )?\d+ (?:s|min)", line.partition("(")[2].partition(")")[0])


@pytest.mark.parametrize(("command", "parts"), [(search, 2), (pareto, 2), (table, 2)])
def test_agents_print_an_estimate(command, parts, small_kwargs, tmp_path, capsys):
    settings = {**small_kwargs, "reward_examples": 10}
    assert len(names_in(estimate_of(command, settings, tmp_path, capsys))) == parts


def test_a_table_needs_no_estimate(tmp_path, capsys):
    line = estimate_of(search, {"env_id": "DAS-METER-VQA-Tabular-v0"}, tmp_path, capsys)
    assert line == "estimate: no model has to run"


@pytest.mark.slow
def test_adapt_prints_an_estimate(small_kwargs, tmp_path, capsys):
    line = estimate_of(adapt, {**small_kwargs, "train": {"steps": 4}}, tmp_path, capsys)
    assert names_in(line) == ["layer statistics", "search", "encoders", "training", "evaluation", "timing"]


def test_a_comparison_of_agents_prints_an_estimate(tmp_path, capsys):
    agents = ["random", "uniform"]
    line = estimate_of(compare, {"env_id": "DAS-METER-VQA-v0", "agents": agents, "evaluations": 9}, tmp_path, capsys)
    assert names_in(line) == agents


@pytest.mark.slow
@pytest.mark.parametrize("command", [das, supernet, adapt_compare], ids=["das", "supernet", "compare"])
def test_long_trainings_print_an_estimate(command, bare_kwargs, tmp_path, capsys):
    training = {"train": {"steps": 4, "batch_size": 4}}
    more = {
        das: {"das": {"skip_num": 2, "batch_size": 4, "image_size": None, "reward_examples": 4}},
        supernet: training,
        adapt_compare: {**training, "methods": ["lora", "das"], "skip_nums": [0]},
    }
    line = estimate_of(command, {**bare_kwargs, **more[command]}, tmp_path, capsys)
    parts = {
        das: ["turns", "encoders", "search", "fine-tuning", "evaluation", "timing"],
        supernet: ["encoders", "training", "evaluation"],
        adapt_compare: ["encoders", "LoRA", "DAS, 0 skipped", "evaluation", "timing"],
    }
    assert all(f"{name} " in line for name in parts[command])


@pytest.mark.slow
@pytest.mark.parametrize("mask", [None, MASK.astype(int).tolist()])
def test_shrink_prints_an_estimate(mask, folder_of, data, tmp_path, capsys):
    settings = {"checkpoint": str(folder_of("llava")), "data_root": str(data), "skip_num": None if mask else 2, "mask": mask}
    line = estimate_of(shrink, {**settings, "train": {"steps": 4}, "control": mask and True}, tmp_path, capsys)
    own = ["teacher", "recovery", "selecting", "measuring", "measuring without recovery", "timing", "verification"]
    assert names_in(line) == (["layer statistics", "search", *own] if mask is None else [*own, "control"])
    assert (", control up to " in line) == (mask is None)


@pytest.mark.slow
@pytest.mark.parametrize("recover", ["linear", "refit+lora"])
def test_an_estimate_includes_the_repair_in_closed_form(recover, folder_of, data, tmp_path, capsys):
    settings = {"checkpoint": str(folder_of("llava")), "data_root": str(data), "recover": recover, "skip_num": 1}
    settings |= {"model": "VLM", "task": "answering", "recovery": {"steps": 4}}
    line = estimate_of(adapt_compare, settings, tmp_path, capsys)
    assert "repair" in names_in(line)
    assert ("recovery" in names_in(line)) == recover.endswith("lora")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_student_shares_all_that_does_not_train(problem_of, method):
    full = problem_of("llava").vlp
    student: Any = pruned_copy(full, MASK)
    trained = insert_trainable(student, full, RecoveryConfig(recover=method).method)
    own = {p.untyped_storage().data_ptr() for p in trained}
    shared = {p.untyped_storage().data_ptr() for p in full.parameters()}
    assert not own & shared
    assert {p.untyped_storage().data_ptr() for p in student.model.parameters()} <= own | shared


def test_gradient_checkpointing_of_recovery_gives_the_same_gradients(problem_of):
    problem = problem_of("llava")
    examples = problem.task.open_ended(problem.splits.train[:3])
    config, found = RecoveryConfig(recover="lora"), {}
    teacher = Teacher(problem.vlp, problem.task, examples, 3)
    for active in (False, True):
        torch.manual_seed(0)
        student: Any = pruned_copy(problem.vlp, MASK)
        trained = insert_trainable(student, problem.vlp, config.method)
        with checkpointed_layers(student, active):
            loss = recovery_loss(student, teacher, problem.task, examples, config)["loss"]
        loss.backward()
        found[active] = [loss.detach(), *(p.grad for p in trained)]
    assert all(torch.equal(plain, again) for plain, again in zip(*found.values(), strict=True))


def test_memory_of_training_by_hand():
    linear = torch.nn.Linear(4, 8)
    x = torch.ones(3, 4, requires_grad=True)
    assert saved_bytes(lambda: linear(x).exp(), linear.parameters()) == (3 * 4 + 3 * 8) * 4  # its input, and exp's output
    assert training_bytes(list(linear.parameters())) == 40 * (4 + 8)
    assert checkpointed_bytes(activations=800, layers=4, state=10) == 40 + 200


def test_saved_tensors_are_released():
    x = torch.ones(3, requires_grad=True)
    outputs = []

    def forward():
        output = x.exp()  # whose backward pass reads the output itself
        outputs.append(weakref.ref(output))
        return output

    saved_bytes(forward, [x])
    gc.collect()
    assert outputs[0]() is None
