"""Shrinking a text model: scores by likelihood, and recovery on all tokens."""

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from das_gym.adapt.evaluate import EvaluateSettings, evaluation_main, load
from das_gym.adapt.run_commands import shrink as ex
from das_gym.adapt.shrinking import measuring, recovery
from das_gym.adapt.shrinking.measuring import score_model
from das_gym.adapt.shrinking.recovery import Teacher, recover_student
from das_gym.adapt.shrinking.settings import RecoveryConfig
from das_gym.agents.run_commands import search, table

from das_gym.commands.recorded import RunError, run_folder
from das_gym.files import read_json
from das_gym.models.transformers.layer_removal import pruned_copy
from das_gym.problem.config import ProblemConfig
from das_gym.problem.problem import Problem, load_problem
from tests.models.transformers.tiny import WIDTH, text_folder

MASK = np.array([False, True, False, True])
CONTEXT = 16


@pytest.fixture(scope="module")
def settings(folder_of, tmp_path_factory) -> dict[str, str]:
    return {"checkpoint": str(folder_of("llama")), "data_root": str(text_folder(tmp_path_factory.mktemp("text")))}


@pytest.fixture(scope="module")
def problem(settings) -> Problem:
    return load_problem(ProblemConfig(model="VLM", task="text", **settings, context=CONTEXT, device="cpu"))


def test_a_shrunk_model_scores_what_the_search_scored(problem):
    examples = problem.splits.test[:5]
    wanted = problem.evaluator.evaluate(MASK[None], examples)
    quality, texts, scores = score_model(pruned_copy(problem.vlp, MASK), problem.task, examples, "")
    assert quality.loss == pytest.approx(wanted.losses[0], abs=1e-5)
    assert quality.score == pytest.approx(scores.mean()) == pytest.approx(wanted.metrics[0], abs=1e-6)
    assert quality.perplexity == pytest.approx(math.exp(quality.loss))
    assert texts[0].endswith("nats a token")


def test_recovery_learns_every_token_from_a_teacher_that_keeps_no_states(problem, monkeypatch):
    examples, config = problem.splits.train[:8], RecoveryConfig(steps=12, batch_size=4, learning_rate=0.01)
    kept = Teacher(problem.vlp, problem.task, examples, 4).states(examples)
    assert len(kept) == sum(len(e.ids) - 1 for e in examples)
    monkeypatch.setattr(recovery, "TEACHER_BYTES", 100)
    teacher = Teacher(problem.vlp, problem.task, examples, 4)
    torch.testing.assert_close(teacher.states(examples), kept)
    student = pruned_copy(problem.vlp, MASK)
    before = score_model(student, problem.task, examples, "")[0].loss
    smaller = copy.copy(problem)
    smaller.splits = replace(problem.splits, train=examples)
    recover_student(student, smaller, config, teacher=teacher)
    assert score_model(student, problem.task, examples, "")[0].loss < before


def test_a_text_has_no_answers_for_a_teacher(settings, tmp_path):
    kept = {"runs_dir": str(tmp_path), "device": "cpu", "problem": {"context": CONTEXT}, "train": {"targets": "teacher"}}
    with pytest.raises(RunError, match="`targets`"):
        ex.run({**settings, **kept, "task": "text", "skip_num": 1})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_shrink_takes_the_result_of_a_search_on_a_table(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measuring, "LATENCY_BLOCKS", 1)
    kept: dict[str, Any] = {"runs_dir": str(tmp_path)}
    problem = {"model": "VLM", "task": "text", **settings, "context": CONTEXT, "device": "cpu"}
    table.run({**kept, "problem": problem, "max_skipped": 1, "reward_examples": 3, "test_examples": 2})
    env_kwargs = {"table": str(tmp_path / "1" / "table.npz")}
    search.run({**kept, "env_id": "DAS-VLM-Text-Tabular-v0", "env_kwargs": env_kwargs, "evaluations": 4})
    assert "adapt shrink with search_run=2 checkpoint=DIR data_root=DIR" in capsys.readouterr().out.partition("Next: ")[2]
    ex.run({**kept, **settings, "search_run": 2, "recover": "none", "test_examples": 2})
    mask = read_json(tmp_path / "2" / "search.json")["mask"]
    assert sum(mask) == 1
    record = read_json(tmp_path / "3" / "shrink.json")
    assert record["report"]["mask"] == mask
    assert record["problem"]["context"] == CONTEXT


@pytest.mark.slow
def test_consecutive_layers_share_a_linear_map(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "LATENCY_BLOCKS", 1)
    kept = {**settings, "task": "text", "mask": [0, 1, 1, 0], "problem": {"context": CONTEXT}, "device": "cpu"}
    rows = []
    for share in (False, True):
        train = {"recover": "linear", "share_maps": share}
        run = ex.run({**kept, "train": train, "test_examples": 2, "runs_dir": str(tmp_path)})
        rows.append(read_json(run_folder(run) / "shrink.json")["models"][-1])  # verified in a fresh process
    assert rows[0]["parameters"] - rows[1]["parameters"] == WIDTH * (WIDTH + 1)
    assert rows[0]["macs"] > rows[1]["macs"]
    with pytest.raises(RunError, match="`share_maps`"):
        ex.run({**kept, "train": {"share_maps": True}, "runs_dir": str(tmp_path)})


@pytest.mark.slow
def test_shrink_and_evaluate_a_text_model(settings, tmp_path, monkeypatch, capsys):
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(measuring, "LATENCY_BLOCKS", 1)
    out = tmp_path / "out"
    quick: dict[str, Any] = {"train": {"steps": 3, "batch_size": 2}, "search": {"evaluations": 4}, "test_examples": 6}
    quick |= {"problem": {"context": CONTEXT}, "runs_dir": str(tmp_path / "runs"), "device": "cpu", "control": False}
    run = ex.run({**settings, **quick, "task": "text", "skip_num": 1, "out": str(out)})
    record = read_json(run_folder(run) / "shrink.json")
    assert "perplexity" in capsys.readouterr().out
    full, shrunk, recovered = record["models"]
    assert all(row["perplexity"] == pytest.approx(math.exp(row["loss"])) for row in (full, shrunk, recovered))
    assert record["verified"]["prompts"] > 0
    about = {"run": str(out), "task": "text", "data_root": settings["data_root"], "context": CONTEXT, "device": "cpu"}
    evaluation_main(EvaluateSettings(**about, limit=1, out=str(tmp_path / "losses.json")))
    example = load(EvaluateSettings(**about))[1][0]
    ids = torch.tensor([example.ids])
    loss = AutoModelForCausalLM.from_pretrained(out)(input_ids=ids, labels=ids).loss
    assert read_json(tmp_path / "losses.json")[0]["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
