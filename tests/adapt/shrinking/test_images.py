"""The frozen vision tower of a recovery: it runs once for each image, and nothing else changes."""

from typing import Any

import pytest
import torch
from das_gym.adapt.shrinking.images import TowerOutputs, find_frozen_tower
from das_gym.adapt.shrinking.recovery import answer_states, insert_trainable
from das_gym.adapt.shrinking.settings import RecoveryConfig

from das_gym.models.transformers.layer_removal import pruned_copy
from das_gym.models.transformers.tower import find_projectors
from tests.adapt.conftest import MASK
from tests.models.transformers import tiny


@pytest.mark.parametrize("name", tiny.cases(("llava", "smolvlm", "qwen2_vl", "gemma3")))
def test_kept_outputs_give_the_states_of_pixels(problem_of, monkeypatch, name):
    problem = problem_of(name)
    student = pruned_copy(problem.vlp, MASK)
    trained = insert_trainable(student, problem.vlp, RecoveryConfig().method)
    for parameter in trained:
        torch.nn.init.normal_(parameter, std=0.1)  # LoRA starts with zeros
    task, examples = problem.task, problem.task.open_ended(problem.splits.test)
    tower = find_frozen_tower(student, task.processor)
    assert tower is not None
    runs: list[Any] = []
    run = tower.read_outputs

    def counted(given: Any) -> Any:
        runs.append(given)
        return run(given)

    monkeypatch.setattr(tower, "read_outputs", counted)
    wanted = answer_states(student, task, examples)
    images = TowerOutputs(student, tower, task.processor, 2**30)
    for _ in range(2):
        found = answer_states(student, task, examples, images)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    keys = {prompt.image_key for prompt in task.pairs(examples)}
    assert all(images.has(key) for key in keys)
    assert len(runs) == len(keys)
    found.square().mean().backward()
    projectors = {id(p) for part in find_projectors(student.model).values() for p in part.parameters()}
    if name != "gemma3":  # whose projector is a parameter, without LoRA
        assert any(p.grad is not None and p.grad.any() for p in trained if id(p) in projectors)


def test_outputs_beyond_the_bound_are_computed_again(problem_of):
    problem = problem_of("llava")
    student = pruned_copy(problem.vlp, MASK)
    task, examples = problem.task, problem.task.open_ended(problem.splits.test)
    tower = find_frozen_tower(student, task.processor)
    assert tower is not None
    first, *_ = task.pairs(examples)
    room = TowerOutputs(student, tower, task.processor, 2**30)
    room.features([first])
    images = TowerOutputs(student, tower, task.processor, room.expected_bytes(2))
    answer_states(student, task, examples, images)
    keys = list(dict.fromkeys(prompt.image_key for prompt in task.pairs(examples)))
    assert [images.has(key) for key in keys] == [True, True, *[False] * (len(keys) - 2)]
    assert images.expected_bytes(10**9) == images.max_bytes
    wanted = answer_states(student, task, examples)
    torch.testing.assert_close(answer_states(student, task, examples, images), wanted, atol=1e-5, rtol=1e-5)


def test_text_models_have_no_tower(problem_of):
    problem = problem_of("llava")
    blind = type(problem.task.processor)(problem.task.processor.tokenizer, problem.task.processor.ends, 512)
    assert find_frozen_tower(problem.vlp, blind) is None
