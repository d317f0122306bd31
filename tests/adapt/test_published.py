"""What is counted here beside what is published of the methods, and the commands of every cell."""

from __future__ import annotations

import dataclasses

import pytest
from das_gym.adapt.commands import PROGRAM
from das_gym.adapt.paper import PAPER, DASSettings
from das_gym.adapt.published import MATCHED, NEEDED, PUBLISHED, TASKS, UNPUBLISHED, Published, command, counted, das_command

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
def test_methods_have_the_published_parameters_and_macs(model: str, title: str, macs: float):
    row = ROWS[model, title]
    found = counted(row)
    assert found[0] == pytest.approx(row.parameters, abs=0.005)
    assert found[1] == pytest.approx(macs, abs=0.005)


def test_a_row_without_a_method_is_not_counted():
    with pytest.raises(ValueError, match="deep prompt of METER cannot be counted"):
        counted(ROWS["METER", "deep prompt"])


def test_every_cell_has_a_command_that_exists():
    for model, columns in TASKS.items():
        for task, _, *more in (*columns, *UNPUBLISHED[model]):
            assert f"{model.lower()}_{task}" in named_environments()
            assert task in NEEDED
            weight = PAPER[model, named_environments()[f"{model.lower()}_{task}"].task].itm_weight
            assert MATCHED.get(task, ()) == ((f"train.itm_weight={weight}",) if weight else ())
            assert das_command(model, task).startswith("python -m adapt das with ")
            changes = dict(word.removeprefix("das.").split("=") for word in (more[0] if more else ()))
            assert changes.keys() <= {f.name for f in dataclasses.fields(DASSettings)}
    assert {"compare", "das"} <= PROGRAM.commands.keys()
    row = Published("METER", "x", "lora", None, None, ())
    assert " image_size=384 " in command(row, "vqa", 384)
    assert "image_size" not in command(row, "vqa", None)
    assert command(row, "vqa", 384).endswith("'methods=[\"lora\"]' steps=STEPS seeds=1")
    assert command(row, "coco", None).endswith("'methods=[\"lora\"]' itm_weight=0.5 steps=STEPS seeds=1")
