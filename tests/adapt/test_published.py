"""Published and counted numbers of the methods, and the commands of every cell."""

from __future__ import annotations

import dataclasses
import shlex

import pytest
from das_gym.adapt.commands import PROGRAM
from das_gym.adapt.paper import PAPER, DASSettings
from das_gym.adapt.published import NEEDED, PUBLISHED, TASKS, commands, count

from das_gym.registration import named_environments

ROWS = {(row.model, row.title): row for row in PUBLISHED}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "title", "macs"),
    [
        ("METER", "LoRA", 0.0),
        ("METER", "adapter", 1.64),
        ("ViLT", "LoRA", 0.0),
        ("ViLT", "adapter", 12 * 2 * 2 * 768 * 96 * (40 + 145) / 1e9),  # published are 0.86, of larger images
    ],
)
def test_count_agrees_with_published_parameters_and_macs(model: str, title: str, macs: float):
    row = ROWS[model, title]
    found = count(row)
    assert found[0] == pytest.approx(row.parameters, abs=0.005)
    assert found[1] == pytest.approx(macs, abs=0.005)


def test_published_cells_have_commands():
    settings = {field.name for field in dataclasses.fields(DASSettings)}
    for model, tasks in TASKS.items():
        for task, changes in tasks.items():
            name = f"{model.lower()}_{task}"
            assert task in NEEDED
            assert {word.removeprefix("das.").partition("=")[0] for word in changes} <= settings
            das, compare = (shlex.split(command) for command in commands(model, task, 384))
            assert das[2:6] == ["adapt" if das[2] == "adapt" else das[2], "das", "with", name]
            assert das[3] in PROGRAM.commands
            assert compare[3] in PROGRAM.commands
            assert "problem.image_size=384" in compare
            weight = PAPER[model, named_environments()[name].task].itm_weight
            assert (f"train.itm_weight={weight}" in compare) == bool(weight)
    assert not any("image_size" in word for word in shlex.split(commands("METER", "vqa", None)[1]))
