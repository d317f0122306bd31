from __future__ import annotations

from collections.abc import Iterator

import pytest

import das_gym.registration as registration
from das_gym import ENVIRONMENTS, ModelEntry, TaskEntry, register_model, register_task


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tables as they were, whatever a test registers."""
    before = [(table, dict(table)) for table in (registration.MODELS, registration.TASKS, registration.ENVIRONMENTS)]
    known = set(registration.registry)
    yield
    for table, content in before:
        table.clear()
        table.update(content)
    for id in set(registration.registry) - known:
        del registration.registry[id]


def test_a_task_gives_an_environment_for_every_model():
    entry = TaskEntry("tiny", "Tiny", "tests.nowhere:Tiny", "nothing")
    register_task(entry)
    register_task(entry)
    assert {"DAS-METER-Tiny-v0", "DAS-ViLT-Tiny-v0"} <= ENVIRONMENTS.keys()
    assert registration.registry["DAS-ViLT-Tiny-Tabular-v0"].kwargs == {"model": "ViLT", "task": "tiny"}


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (TaskEntry("tiny", "My Task", "x:X", "nothing"), "title='My Task' cannot be part of an id such as DAS-METER-VQA-v0"),
        (TaskEntry("my/tiny", "Tiny", "x:X", "nothing"), "name='my/tiny' cannot be part of an id"),
        (TaskEntry("vqa2", "VQA", "x:X", "nothing"), "title='VQA' is that of the task 'vqa'; give 'vqa2' another"),
    ],
)
def test_a_bad_task_is_refused_and_leaves_nothing_behind(entry: TaskEntry, text: str):
    with pytest.raises(ValueError, match=text):
        register_task(entry)
    register_task(TaskEntry("good", "Good", "x:X", "nothing"))
    assert entry.name not in registration.TASKS
    assert ENVIRONMENTS["DAS-METER-VQA-v0"].task == "vqa"


def test_a_model_without_a_name_for_ids_is_refused():
    with pytest.raises(ValueError, match="name='My-Model' cannot be part of an id"):
        register_model(ModelEntry("My-Model", vlp="x:X", transform="x:x"))
    assert "My-Model" not in registration.MODELS


@pytest.mark.parametrize("name", ["no_such_module:Name", "json:nothing", "my-module:Name", ""])
def test_a_name_that_cannot_be_imported_is_told(name):
    with pytest.raises(ValueError, match=f"'{name}' cannot be imported"):
        registration.find_class(name)
