"""Training with adapters in a model of transformers: supernet, a subnet, the paper's pipeline."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from das_gym.adapt import load_subnet, save
from das_gym.adapt.evaluate import evaluate
from das_gym.adapt.finetuning import new_subnet, train_subnet
from das_gym.adapt.joint_search import Training, joint_search, new_model
from das_gym.adapt.paper import das_settings
from das_gym.adapt.settings import SupernetConfig, TrainingConfig
from das_gym.adapt.supernet import train_supernet

from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_splits
from das_gym.problem.problem import build_problem
from tests.adapt.choosers import paper_bandit
from tests.models.transformers import tiny
from tests.tasks.answering.making import llava_folder, write_lines

Run = Callable[..., tuple[int, str]]

MASK = np.array([0, 1, 0, 1], dtype=bool)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> ProblemConfig:
    folder = tmp_path_factory.mktemp("prompts")
    tiny.save("llava", folder / "model")
    llava_folder(folder / "data", train=12, test=4)
    return ProblemConfig("VLM", "answering", checkpoint=str(folder / "model"), data_root=str(folder / "data"))


@pytest.mark.slow
def test_supernet_scores_masks_through_its_adapters(config, tmp_path):
    out = train_supernet(SupernetConfig(steps=3, batch_size=4, max_skipped=2), config, tmp_path / "supernet.safetensors")
    trained = build_problem(ProblemConfig(**{**vars(config), "supernet": str(out)}))
    free = build_problem(config)
    masks = np.stack((np.zeros(4, bool), MASK))
    losses, others = (p.evaluator.losses(masks, p.splits.reward) for p in (trained, free))
    assert (losses != others).all()
    assert (trained.costs.skip_macs > 0).all()
    assert trained.costs.memory.full == free.costs.memory.full == 4 * free.costs.parameters_full
    assert out.stat().st_size < 2**20  # adapters alone: neither the model nor its head


@pytest.mark.slow
def test_subnet_is_fine_tuned_saved_and_loaded(config, tmp_path):
    splits = load_splits(config)
    subnet = new_subnet(config, MASK)
    before = evaluate(subnet, splits.train, "before")
    train_subnet(subnet, splits, TrainingConfig(steps=20, batch_size=8, learning_rate=1e-2), "fine-tuning")
    after = evaluate(subnet, splits.train, "after")
    assert after.loss < before.loss - 0.5
    again = load_subnet(save(subnet, tmp_path / "mine").parent)
    np.testing.assert_array_equal(again.backbone.vlp.pruned_mask, MASK)
    assert evaluate(again, splits.train, "again").loss == pytest.approx(after.loss, abs=1e-6)


@pytest.mark.slow
def test_predict_answers_questions_without_references(config, tmp_path, run_here):
    """A subnet with adapters, by `adapt predict` of questions alone: each token is the likeliest by its own forward."""
    splits = load_splits(config)
    subnet = new_subnet(config, MASK)
    train_subnet(subnet, splits, TrainingConfig(steps=15, batch_size=12, learning_rate=1e-2), "fine-tuning")
    save(subnet, tmp_path / "mine")
    by_image = {Path(e.images[0].path).name: e for e in (*splits.train, *splits.reward, *splits.test)}
    examples = [by_image[f"{n}.png"] for n in range(4)]
    asked = [{"question_id": n, "image": f"{n}.png", "text": e.question} for n, e in enumerate(examples)]
    file = write_lines(Path(config.data_root or "") / "asked.jsonl", asked)
    words = ("run=mine", f"data_root={file}", "split=questions", "out=said.json", "max_new_tokens=3")
    with pytest.warns(UserWarning, match="4 of 4 answers are cut off.*`max_new_tokens=3`"):
        assert run_here("predict", "with", *words)[0] == 0
    rows = json.loads((tmp_path / "said.json").read_text())
    assert [row["question_id"] for row in rows] == [0, 1, 2, 3]
    known = [replace(e, answer=row["answer"]) for e, row in zip(examples, rows, strict=True)]
    forced = [row["teacher_forced"] for row in evaluate(subnet, known, "again").predictions]
    assert all(one.startswith(row["answer"]) for one, row in zip(forced, rows, strict=True))
    assert {row["answer"] for row in rows} - {""}, rows
    with pytest.warns(UserWarning, match="4 of 4 answers are cut"):  # the model as it came
        assert (
            run_here("predict", "with", f"run={config.checkpoint}", *words[1:3], "max_new_tokens=2", "out=plain.json")[0]
            == 0
        )
    assert [row["question_id"] for row in json.loads((tmp_path / "plain.json").read_text())] == [0, 1, 2, 3]
    code, printed = run_here("evaluate", "with", *words[:3])
    assert code == 1
    assert "has no answers to compare with: use `adapt predict`" in printed


@pytest.mark.slow
def test_paper_pipeline(config):
    settings = das_settings("VLM", "answering", batch_size=4, reward_examples=4, steps_per_turn=1, skip_num=1, bottleneck=4)
    splits = load_splits(config)
    training = Training(new_model(config, splits, settings, seed=0), splits, settings, seed=0)
    frozen = {n: p.clone() for n, p in training.model.backbone.vlp.named_parameters() if not p.requires_grad}
    groups = training.trainer(1, None, 100).optimizer.param_groups  # the model's own head is frozen
    assert all(parameter.requires_grad for group in groups for parameter in group["params"])
    mask, turns = joint_search(training, splits, paper_bandit(4, 1, 0, 1.0))
    assert mask.sum() == 1
    assert turns
    now = dict(training.model.backbone.vlp.named_parameters())
    assert all(torch.equal(tensor, now[name]) for name, tensor in frozen.items())


@pytest.mark.slow
@pytest.mark.parametrize("words", [("supernet",), ("das",), ("compare", "methods=['lora']"), ("run", "mask=[0,1,0,0]")])
def test_prompts_that_are_too_long_begin_no_run(config, tmp_path, run_here, words):
    given = (f"checkpoint={config.checkpoint}", f"data_root={config.data_root}", "problem.max_text_length=8", "device=cpu")
    code, printed = run_here(words[0], "with", "vlm_answering", *given, *words[1:])
    assert code == 1
    assert "tokens with its answer, expected at most 8" in printed
    assert not (tmp_path / "runs").exists()
