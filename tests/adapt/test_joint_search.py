"""The paper's pipeline on a tiny problem."""

import json
import re
import shlex
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from das_gym.adapt import das, load_subnet
from das_gym.adapt.joint_search import JointTurn, Training, Turns, joint_search, new_model, reward_examples
from das_gym.adapt.paper import DASSettings, das_settings
from das_gym.adapt.pipeline import SUPERNET_FILE, UntrainedModel
from das_gym.adapt.run_commands import check_das
from das_gym.adapt.run_commands import das as ex
from das_gym.adapt.settings import JointSearchSettings, TrainingConfig
from das_gym.adapt.step_loss import make_loss_and_trainer, training_batch
from torch import nn

from das_gym.commands.recorded import Run, RunError
from das_gym.commands.settings import build
from das_gym.files import read_json
from das_gym.models.attention import Attention
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_splits
from das_gym.problem.problem import load_problem
from das_gym.shapes.captions import write_shapes_captions
from das_gym.tasks.retrieval import matching_losses
from tests.adapt.choosers import paper_bandit

TINY = {"batch_size": 16, "reward_examples": 8}


def settings_of(recipe: str, **changes) -> DASSettings:
    return das_settings("METER", "vqa", recipe, **{**TINY, "steps_per_turn": 2, "augment": False, **changes})


@pytest.fixture
def problem(shapes_folder) -> ProblemConfig:
    return ProblemConfig(data_root=str(shapes_folder))


def new_training(problem: ProblemConfig, settings: DASSettings) -> tuple[Training, object]:
    splits = load_splits(problem)
    return Training(new_model(problem, splits, settings, seed=0), splits, settings, seed=0), splits


@pytest.mark.slow
def test_joint_search_takes_turns_after_warmup(problem):
    settings = settings_of("das_gym", search_epochs=2)
    training, splits = new_training(problem, settings)
    chooser = paper_bandit(12, 4, 0, 1.0)
    mask, turns = joint_search(training, splits, chooser)
    per_epoch = training.steps_per_epoch
    assert [turn.step for turn in turns] == list(range(per_epoch, 2 * per_epoch, 2))
    assert mask.sum() == 4
    assert np.array_equal(mask, chooser.best())
    for turn in turns:
        assert len({tuple(m) for m in turn.masks}) == 3
        assert turn.rewards == np.exp(-np.array(turn.losses)).tolist()
    # the update, by hand, for the first turn: g = 0, p = 1/2
    first = turns[0]
    advantages = np.array(first.rewards) - np.mean(first.rewards)
    assert first.preferences == pytest.approx((advantages @ np.array(first.masks) / 4).tolist())


@pytest.mark.slow
def test_turns_restore_the_chooser_of_a_stopped_search():
    stopped, resumed = paper_bandit(12, 4, 0, 1.0), paper_bandit(12, 4, 1, 1.0)
    turns, again = Turns(stopped), Turns(resumed)
    for step in range(3):
        masks = stopped.ask(3)
        rewards = 1 / (1 + masks @ np.arange(12.0))
        stopped.tell(masks, rewards)
        turns.history.append(JointTurn(step, masks.astype(int).tolist(), [1.0] * 3, rewards.tolist(), None))
    again.load_state_dict(json.loads(json.dumps(turns.state_dict())))
    assert again.history == turns.history
    np.testing.assert_array_equal(resumed.preferences, stopped.preferences)
    np.testing.assert_array_equal(resumed.ask(5), stopped.ask(5))


def test_joint_search_trains_tunable_parameters_alone(problem):
    settings = settings_of("das_gym", search_epochs=1, warmup_epochs=0)
    training, splits = new_training(problem, settings)
    before = {name: p.detach().clone() for name, p in training.model.backbone.vlp.named_parameters()}
    joint_search(training, splits, paper_bandit(12, 4, 0, 1.0))
    tunable = training.model.backbone.vlp.tunable_state().keys()
    changed = {name for name, p in training.model.backbone.vlp.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert changed <= set(tunable)


def test_losses_use_dropout_in_the_papers_recipe_alone(problem):
    mask = np.zeros((2, 12), dtype=bool)
    for recipe, same in (("paper", False), ("das_gym", True)):
        training, splits = new_training(problem, settings_of(recipe))
        losses = training.losses(mask, reward_examples(training.model.task, splits, training.settings))
        assert (losses[0] == losses[1]) == same
    assert training.model.backbone.vlp.training is False


def test_reward_examples_of_each_recipe(problem):
    training, splits = new_training(problem, settings_of("paper"))
    task = training.model.task
    first = reward_examples(task, splits, settings_of("paper"))
    assert [e.key for e in first] == [e.key for e in splits.reward[:8]]
    assert [e.key for e in reward_examples(task, splits, settings_of("paper", reward_split="train"))] == [
        e.key for e in splits.train[:8]
    ]
    drawn = reward_examples(task, splits, settings_of("das_gym"))
    assert {e.key for e in drawn} <= {e.key for e in splits.reward}
    assert [e.key for e in drawn] != [e.key for e in first]


def test_trainer_multiplies_learning_rates(problem):
    training, _ = new_training(problem, settings_of("paper"))
    groups = training.trainer(10, None, 100).optimizer.param_groups
    rates = {id(p): group["initial_lr"] for group in groups for p in group["params"]}
    named = {f"vlp.{n}": p for n, p in training.model.backbone.vlp.named_parameters() if p.requires_grad}
    named |= {f"head.{n}": p for n, p in training.model.head.named_parameters()}
    assert rates.keys() == {id(p) for p in named.values()}
    for name, parameter in named.items():
        times = 50 if name.startswith("head.") else 5 if "adapter" in name or "pooler" in name else 1
        assert rates[id(parameter)] == times * 2.5e-5, name
    assert {"vlp.token_types.weight", "vlp.text_pooler.weight"} <= named.keys()


def test_dropout_is_everywhere_in_the_papers_recipe(problem):
    training, _ = new_training(problem, settings_of("paper"))
    vlp = training.model.backbone.vlp
    places = {name: module for name, module in vlp.named_modules() if isinstance(module, nn.Dropout)}
    runs: Counter[str] = Counter()
    for name, module in places.items():
        module.register_forward_hook(lambda m, _, __, name=name: runs.update([name] if m.training and m.p == 0.1 else []))
    training.step_loss(0, np.zeros(12, dtype=bool))
    sub_layers = {f"{stream}_layers.{i}.layer.dropout": 3 for stream in ("text", "image") for i in range(6)}
    assert {name: count for name, count in runs.items() if "encoder" not in name} == sub_layers
    assert sum("text_encoder" in name for name in runs) >= 5
    attention = [module for module in vlp.modules() if isinstance(module, Attention)]
    assert [(module.training, module.dropout) for module in attention] == [(True, 0.1)] * 24


@pytest.mark.slow
def test_das_command(problem, tmp_path, capsys):
    updates = {
        "data_root": problem.data_root,
        "runs_dir": str(tmp_path),
        "das": {**TINY, "search_epochs": 2, "finetune_epochs": 1, "steps_per_turn": 3},
    }
    run = ex.run(config_updates=updates, named_configs=["meter_vqa", "paper"])
    record = read_json(tmp_path / "1" / "das.json")
    assert run.result == record["models"][0]["evaluation"]["metric"]
    assert record["pipeline"]["reward_dropout"] is True
    assert record["pipeline"]["learning_rate"] == 2.5e-5
    assert record["models"][0]["mask"] == record["search"]["mask"]
    assert sum(record["search"]["mask"]) == 4
    assert read_json(tmp_path / "1" / "examples.json")["models"] == ["full model with adapters", "subnet"]
    assert [model["name"] for model in record["models"]] == ["subnet", "full_model", "baseline"]
    assert not any(record["models"][1]["mask"])
    baseline = record["models"][2]
    assert (baseline["evaluation"], baseline["trainable_parameters"], baseline["speedup"]) == (None, 0, None)
    assert baseline["parameters"] < record["models"][1]["parameters"]
    printed = capsys.readouterr().out
    assert re.search(r"^  loss \d+\.\d{4} without (text|image)\.\d, ", printed, re.MULTILINE)
    assert "accuracy on test" in printed


@pytest.mark.parametrize(
    "settings", [{"skip_num": 13}, {"skip_num": "x"}, {"bottleneck": -1}, {"search_epochs": 1}, {"warmup_epochs": 3}]
)
def test_settings_of_the_pipeline_are_checked_without_the_model(settings):
    name = "search_epochs" if "epochs" in min(settings) else min(settings)  # no turn is left: the answer would be arbitrary
    with pytest.raises((ValueError, TypeError), match=name):
        check_das(JointSearchSettings(das=settings))


@pytest.mark.parametrize(
    ("updates", "text"),
    [
        ({"das": {"skip_num": 13}}, "skip_num"),
        ({"das": {"itm_weight": 0.5}}, "itm_weight"),
    ],
)
def test_das_command_names_a_wrong_setting(updates, text, problem, tmp_path):
    with pytest.raises(RunError, match=text):
        ex.run(config_updates={**updates, "data_root": problem.data_root, "runs_dir": str(tmp_path)})
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def captions(tmp_path_factory) -> ProblemConfig:
    root = write_shapes_captions(tmp_path_factory.mktemp("captions") / "data", scenes={"train": 4, "val": 4, "test": 4})
    return ProblemConfig(task="retrieval", data_root=str(root))


@pytest.mark.slow
def test_itm_weight_adds_matching_to_training_and_to_rewards_with_dropout(captions):
    changes = {"batch_size": 1, "reward_examples": 1, "augment": False, "dropout": 0.0, "train_on_reward": False}
    losses = {}
    for weight, dropout in ((0.0, True), (0.5, True), (0.5, False)):
        settings = das_settings("METER", "retrieval", "paper", **changes, itm_weight=weight, reward_dropout=dropout)
        training, splits = new_training(captions, settings)
        mask = np.arange(12) < 4
        step = [float(part["loss"].detach()) for part in training.step_loss.parts(0, mask)]
        losses[weight, dropout] = (step[0], training.losses(mask[None], splits.reward[:1])[0])
    step_loss, head = training.step_loss, training.model.backbone.heads["itm_score"]
    examples = training_batch(step_loss.examples, 1, seed=0, step=0)
    pooled = training.model.backbone.vlp(training.model.task.processor(training.model.task.pairs(examples)), mask)
    matching = matching_losses(pooled, **head).mean().item()
    assert losses[0.5, True][0] - losses[0.0, True][0] == pytest.approx(matching / 2, rel=1e-4)
    assert losses[0.5, True][1] > losses[0.0, True][1]
    assert losses[0.5, False][1] == pytest.approx(losses[0.0, True][1], rel=1e-5)  # by the engine: the task's own loss
    assert not any(tensor.requires_grad for tensor in head.values())
    finetuning, _ = make_loss_and_trainer(training.model, splits.train, TrainingConfig(batch_size=1, itm_weight=0.5), None)
    assert finetuning.itm_weight == 0.5


SHORT = {"search_epochs": 1, "warmup_epochs": 0, "finetune_epochs": 0, "skip_num": 2, "batch_size": 80, "reward_examples": 4}


@pytest.mark.slow
@pytest.mark.parametrize("start", ["search", "new"])
def test_finetune_from_decides_what_fine_tuning_starts_from(bare_kwargs, tmp_path, capsys, start):
    das = {**SHORT, "finetune_from": start}
    given = {**bare_kwargs, "problem": {"image_size": 96}, "runs_dir": str(tmp_path), "references": False, "das": das}
    ex.run(config_updates=given, named_configs=["meter_vqa"])
    folder = tmp_path / "1"
    supernet = Adaptation.load(folder / SUPERNET_FILE)
    subnet = load_subnet(folder).adaptation().tensors
    kept = [bool(np.array_equal(supernet.tensors[name], tensor)) for name, tensor in subnet.items()]
    assert all(kept) is (start == "search")
    assert read_json(folder / "das.json")["pipeline"]["finetune_from"] == start
    problem = load_problem(ProblemConfig(**bare_kwargs, image_size=96, supernet=str(folder / SUPERNET_FILE)))
    assert np.isfinite(problem.evaluator.losses(np.zeros((1, 6), bool), problem.splits.reward[:4])).all()
    printed = capsys.readouterr().out
    assert f"bayes skip_num=2 {shlex.quote(f'supernet={folder / SUPERNET_FILE}')}" in printed


@pytest.mark.slow
def test_a_run_that_was_stopped_after_its_search_logs_it_again(bare_kwargs, tmp_path, monkeypatch):
    das = {**SHORT, "finetune_epochs": 1}
    given = {**bare_kwargs, "problem": {"image_size": 96}, "runs_dir": str(tmp_path), "references": False, "das": das}
    log_scalar = Run.log_scalar

    def stop(run: Run, name: str, *others: Any) -> None:
        if name.startswith("finetune"):
            raise KeyboardInterrupt
        log_scalar(run, name, *others)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log_scalar", stop)
        with pytest.raises(KeyboardInterrupt):
            ex.run(config_updates=given, named_configs=["meter_vqa"])
    logged, found = read_json(tmp_path / "1" / "metrics.json"), read_json(tmp_path / "1" / "found.json")
    ex.run({"resume": 1, "runs_dir": str(tmp_path)})
    again = read_json(tmp_path / "1" / "metrics.json")
    assert logged.keys() == {"search.loss", "search.accuracy"}
    assert all(again[name]["values"] == series["values"] for name, series in logged.items())
    assert read_json(tmp_path / "1" / "found.json") == found


def test_each_training_starts_from_the_same_random_states(bare_kwargs):
    """Also on a GPU, from whose numbers dropout is drawn there."""
    problem = {**bare_kwargs, "image_size": 96}
    settings = build(JointSearchSettings, {"problem": problem, "das": SHORT})
    splits = load_splits(settings.recipe_problem)
    untrained = UntrainedModel.load(settings.recipe_problem, splits, settings.pipeline, settings.seed)
    device = untrained.model.backbone.vlp.device
    drawn = []
    for _ in range(2):
        untrained.copy()
        drawn.append(torch.rand(3, device=device).tolist())
    assert drawn[0] == drawn[1]


def test_das_rejects_adapter_widths_of_another_checkpoint(small_kwargs, tmp_path):
    given: dict[str, Any] = {**small_kwargs, "supernet": None, "problem": {"image_size": 96}, "das": {"bottleneck": 24}}
    with pytest.raises(RunError, match=r"got \(16, 64\) .*, expected \(24, 64\)"):
        ex.run(config_updates={**given, "runs_dir": str(tmp_path)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", ["small", "decoder"])
def test_das_is_the_command_in_memory(family, small_kwargs, tiny_llava, tmp_path, capsys):
    small = {"model": "METER", "task": "vqa", **small_kwargs, "image_size": 96}
    given = {"small": small, "decoder": {"model": "VLM", "task": "answering", **tiny_llava}}[family]
    settings = {**SHORT, "finetune_epochs": 1, "batch_size": 4 if family == "decoder" else 80, "skip_num": 1}
    command = {"problem": given, "das": settings, "references": False, "test_examples": 2, "runs_dir": str(tmp_path)}
    ex.run(config_updates=command)
    problem = load_problem(ProblemConfig(**given))
    state = torch.get_rng_state()
    capsys.readouterr()
    found, tuned = das(problem, progress=False, folder=tmp_path / "mine", **settings)
    assert "".join(capsys.readouterr()) == ""
    assert torch.equal(torch.get_rng_state(), state)
    assert found.record() == read_json(tmp_path / "1" / "found.json") == read_json(tmp_path / "mine" / "found.json")
    wanted = Adaptation.load(tmp_path / "1" / "adapter.safetensors").tensors
    mine = tuned.subnet.adaptation().tensors
    assert mine.keys() == wanted.keys()
    assert all(torch.equal(mine[name], tensor) for name, tensor in wanted.items())
    with pytest.raises(ValueError, match="another `skip_num`"):
        das(problem, folder=tmp_path / "mine", **{**settings, "skip_num": 2})


@pytest.mark.parametrize(
    ("given", "word"), [({"skip_nun": 2}, "skip_num"), ({"skip_num": 13}, "skip_num"), ({"recipe": "papers"}, "paper")]
)
def test_das_names_a_wrong_argument(given, word, small_kwargs):
    with pytest.raises(ValueError, match=word) as error:
        das(load_problem(ProblemConfig(**small_kwargs)), **given)
    assert "\n" not in str(error.value)
