"""The function `das_gym.adapt.finetune`: what the commands train, in memory, and polite."""

from typing import Any

import numpy as np
import pytest
import torch
from das_gym.adapt import Tuned, das, finetune, load_subnet
from das_gym.adapt.compare.training import MethodVariant, TrainingRows
from das_gym.adapt.finetuning import with_new_head
from das_gym.adapt.run_commands import adapt as command
from das_gym.adapt.settings import TrainingConfig

from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_backbone, load_splits
from das_gym.problem.problem import Problem, load_problem
from tests.adapt.conftest import MASK

SMALL_MASK = [0, 1, 0, 0, 1, 0]
STEPS: dict[str, Any] = {"steps": 2, "batch_size": 4}


@pytest.fixture
def small(small_kwargs) -> Problem:
    return load_problem(ProblemConfig(**small_kwargs))


@pytest.fixture
def live(folder_of, problem_of) -> Problem:
    """The problem of a model in memory, on the examples of that of its folder."""
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = folder_of("llava")
    rows = [{"image": Image.new("RGB", (32, 32), (n, 0, 0)), "question": f"{n}?", "answer": "red"} for n in range(8)]
    model = AutoModelForImageTextToText.from_pretrained(folder)
    problem = Problem.from_model(model, AutoProcessor.from_pretrained(folder), train=rows)
    of_folder = problem_of("llava")
    problem.task, problem.splits = of_folder.task, of_folder.splits
    return problem


def trained(tuned: Tuned) -> dict[str, torch.Tensor]:
    adaptation = tuned.trained or tuned.subnet.adaptation()
    return dict(adaptation.tensors)


def are_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("model", ["supernet", "decoder"])
def test_result_is_that_of_the_command(model, small_kwargs, tiny_llava, tmp_path):
    given, mask = {
        "supernet": ({"model": "METER", "task": "vqa", **small_kwargs}, SMALL_MASK),
        "decoder": ({"model": "VLM", "task": "answering", **tiny_llava}, MASK.astype(int).tolist()),
    }[model]
    settings = {"mask": mask, "train": STEPS, "references": False, "test_examples": 2, "runs_dir": str(tmp_path)}
    command.run({"problem": given, **settings})
    problem = load_problem(ProblemConfig(**given))
    tuned = finetune(problem, np.array(mask), progress=False, **STEPS)
    assert are_equal(trained(tuned), dict(Adaptation.load(tmp_path / "1" / "adapter.safetensors").tensors))
    again = load_subnet(tuned.save(tmp_path / "saved").parent)
    assert are_equal(trained(tuned), dict(again.adaptation().tensors))


@pytest.mark.parametrize("method", ["lora", "das"])
def test_other_methods_train_as_the_comparison_does(method, small, tmp_path):
    config = small.backbone.origin.config
    splits = load_splits(config)
    base = with_new_head(load_backbone(config), config.task, splits)
    rows = TrainingRows(base, splits, TrainingConfig(**STEPS), [], (), (), tmp_path, test_examples=4)
    mask = SMALL_MASK if method == "das" else None
    own = {"mask": tuple(SMALL_MASK)} if method == "das" else {"rank": 2}
    _, adaptation, _ = rows.train(MethodVariant(method, method, method, own), 2e-3, 3)
    settings = {} if method == "das" else own
    rates = {"learning_rate": 2e-3, "head_learning_rate": 2e-3}
    tuned = finetune(small, mask, method, seed=3, **STEPS, **rates, **settings)
    assert are_equal(trained(tuned), dict(adaptation.tensors))


def test_lora_without_the_layers_of_a_mask_is_saved_and_loaded(small, tmp_path):
    tuned = finetune(small, SMALL_MASK, "lora", rank=2, **STEPS)
    again = load_subnet(tuned.save(tmp_path / "saved").parent)
    assert again.backbone.vlp.pruned_mask.astype(int).tolist() == SMALL_MASK == tuned.mask.astype(int).tolist()
    state = again.backbone.vlp.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tuned.model.state_dict().items())


@pytest.mark.parametrize("method", ["adapter", "lora", "full"])
def test_the_problem_and_random_states_stay_and_nothing_is_printed(method, small, capsys):
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in small.vlp.named_parameters()}
    loss = small.losses([SMALL_MASK])
    state = torch.get_rng_state()
    capsys.readouterr()
    tuned = finetune(small, SMALL_MASK, method, progress=False, **STEPS)
    assert torch.equal(torch.get_rng_state(), state)
    assert "".join(capsys.readouterr()) == ""
    assert small.vlp.pruned_mask is None
    for name, parameter in small.vlp.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.requires_grad == before[name][1]
    assert np.array_equal(small.losses([SMALL_MASK]), loss)
    assert f"method: {method}" in repr(tuned)


def test_two_problems_in_turn(small, problem_of):
    first = trained(finetune(small, SMALL_MASK, **STEPS))
    decoder = finetune(problem_of("llava"), MASK, **STEPS)
    assert are_equal(first, trained(finetune(small, SMALL_MASK, **STEPS)))
    assert are_equal(trained(decoder), trained(finetune(problem_of("llava"), MASK, **STEPS)))


def test_a_live_model_trains_as_that_of_its_folder(live, problem_of, tmp_path):
    tuned = finetune(live, MASK.tolist(), **STEPS)
    of_folder = finetune(problem_of("llava"), MASK, **STEPS)
    assert are_equal(trained(tuned), trained(of_folder))
    assert tuned.evaluate() == of_folder.evaluate()
    with pytest.raises(ValueError, match="from_pretrained"):
        tuned.save(tmp_path / "saved")


def test_the_pipeline_of_a_live_model_is_that_of_its_folder(live, problem_of):
    short = {"search_epochs": 1, "warmup_epochs": 0, "finetune_epochs": 1, "skip_num": 1, "batch_size": 4}
    found, tuned = das(live, reward_examples=2, **short)
    other, of_folder = das(problem_of("llava"), reward_examples=2, projector_learning_rate=0.0, **short)
    assert found.record() == other.record()
    assert are_equal(trained(tuned), trained(of_folder))


def test_evaluate_and_predict_take_rows(small):
    tuned = finetune(small, SMALL_MASK, **STEPS)
    rows = small.splits.test[:3]
    assert len(tuned.predict(rows)) == 3
    assert tuned.evaluate(rows).loss != tuned.evaluate().loss


def test_a_folder_belongs_to_one_training(small, problem_of, tmp_path):
    first = finetune(small, SMALL_MASK, folder=tmp_path, **STEPS)
    for name, value in (("mask", [1, 0, 0, 0, 0, 0]), ("method", "lora"), ("seed", 1), ("batch_size", 5)):
        given = {"mask": SMALL_MASK, **STEPS, name: value}
        with pytest.raises(ValueError, match=f"another `{name}`"):
            finetune(small, folder=tmp_path, **given)
    with pytest.raises(ValueError, match="another `model`"):
        finetune(problem_of("llava"), MASK, folder=tmp_path, **STEPS)
    again = finetune(small, SMALL_MASK, folder=tmp_path, micro_batch_size=np.int64(2), **STEPS)
    assert are_equal(trained(first), trained(again))  # it had ended


@pytest.mark.parametrize(
    ("mask", "method", "settings", "word"),
    [
        (SMALL_MASK, "lroa", {}, "lora"),
        (SMALL_MASK, "adapter", {"stepz": 3}, "steps"),
        (SMALL_MASK, "adapter", {"steps": 0}, "steps"),
        (SMALL_MASK, "adapter", {"rank": 3}, "rank"),
        (SMALL_MASK, "lora", {"rank": 0}, "rank"),
        (SMALL_MASK, "adapter", {"itm_weight": 0.5}, "itm_weight"),
        (SMALL_MASK[:4], "adapter", {}, "mask"),
        ([2, 0, 0, 0, 0, 0], "adapter", {}, "mask"),
    ],
)
def test_wrong_arguments_are_one_line(small, mask, method, settings, word):
    with pytest.raises((ValueError, TypeError), match=word) as error:
        finetune(small, mask, method, **settings)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("problem", ["METER", None, ProblemConfig()])
def test_other_objects_than_problems_are_named(problem):
    with pytest.raises(TypeError, match="`problem`") as error:
        finetune(problem, SMALL_MASK)
    assert len(str(error.value)) < 300
