import dataclasses
from collections.abc import Iterator

import gymnasium
import numpy as np
import pytest

import das_gym.registration as registration
from das_gym import ENVIRONMENTS, ModelEntry, Task, TaskEntry, register_model, register_task
from das_gym.problem.loading import task_class
from das_gym.tasks.vqa.task import VQATask
from tests.registered import as_before


@pytest.fixture(autouse=True)
def restored(monkeypatch) -> Iterator[None]:
    """Tables as they were, whatever a test registers."""
    with as_before():
        yield


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (TaskEntry("tiny", "My Task", "x:X", "nothing"), "`title` cannot be part of an id: got 'My Task'"),
        (TaskEntry("vqa2", "Vqa", "x:X", "nothing"), "title='Vqa' is already the title of 'vqa'"),
        (TaskEntry(None, "Other", "x:X", "nothing"), "`name` cannot be part of an id: got None"),
    ],
)
def test_bad_task_is_rejected_and_leaves_no_ids(entry, text):
    with pytest.raises(ValueError, match=text):
        register_task(entry)
    register_task(TaskEntry("good", "Good", "x:X", "nothing"))
    assert entry.name not in registration.TASKS
    assert ENVIRONMENTS["DAS-METER-VQA-v0"].task == "vqa"


def test_bad_model_or_kind_of_entry_is_rejected():
    with pytest.raises(ValueError, match="`name` cannot be part of an id: got 'My-Model'"):
        register_model(ModelEntry("My-Model", vlp="x:X", load="x:x"))
    with pytest.raises(TypeError, match="TaskEntry"):
        register_task(registration.MODELS["METER"])
    with pytest.raises(TypeError, match="ModelEntry"):
        register_model(VQATask)


@pytest.mark.slow
def test_model_registers_an_environment_per_task(small_kwargs):
    register_model(dataclasses.replace(registration.MODELS["METER"], name="Toy"))
    assert {"DAS-Toy-VQA-v0", "DAS-Toy-NLVR2-v0", "DAS-Toy-F30K-v0"} <= ENVIRONMENTS.keys()
    mask = np.array([1, 0] * 3, np.int8)
    rewards = []
    for name in ("Toy", "METER"):
        env = gymnasium.make(f"DAS-{name}-VQA-v0", skip_num=3, reward_examples=8, **small_kwargs)
        env.reset(seed=0)
        rewards.append(env.step(mask)[1])
    assert rewards[0] == rewards[1] > 0


def test_model_replaces_a_bundled_one_without_its_checkpoints():
    entry = dataclasses.replace(registration.MODELS["VLM"], assets=None, others=())
    register_model(entry)
    assert registration.MODELS["VLM"] is entry


class Unfinished(Task):
    metric_name = "hits"

    def pairs(self, examples):
        return []


LACKS = (
    "Unfinished cannot be the task 'tiny': it lacks name = 'tiny', build_head, load_splits, losses, metrics, targets; "
    "see das_gym.Task"
)


@pytest.mark.parametrize(
    ("task", "text"),
    [
        (Unfinished, LACKS),
        (dict, "not a task: got <class 'dict'>, expected a subclass of das_gym.Task"),
    ],
)
def test_missing_methods_of_a_custom_task_are_named_together(task, text):
    with pytest.raises(TypeError, match=text):
        register_task(TaskEntry("tiny", "Tiny", task, "nothing"))
    assert "tiny" not in registration.TASKS


def test_task_by_module_name_is_checked_on_load():
    register_task(TaskEntry("tiny", "Tiny", "tests.test_registration:Unfinished", "nothing"))
    with pytest.raises(TypeError, match=LACKS):
        task_class("tiny")
