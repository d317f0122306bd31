import dataclasses
import re
import shlex

import pytest
from das_gym.adapt.commands import PROGRAM
from das_gym.adapt.paper import PAPER, RECIPE_CHANGES, SOURCES, DASSettings, das_settings
from das_gym.adapt.paper_command import NEEDED_FILES, PUBLISHED, TASKS, commands, count, main

from das_gym.commands.runs import PluginSettings
from das_gym.registration import named_environments

FIELDS = {f.name for f in dataclasses.fields(DASSettings)}


def test_published_settings():
    meter = PAPER["METER", "vqa"]
    assert (meter.skip_num, meter.masks_per_turn, meter.steps_per_turn) == (4, 3, 10)
    assert (meter.warmup_epochs, meter.search_epochs, meter.finetune_epochs) == (1, 3, 10)
    assert (meter.update_rate, meter.bottleneck, meter.skip_bottleneck) == (1.0, 96, 288)
    assert meter.reward_dropout
    assert meter.train_on_reward
    assert not meter.reward_shuffled
    assert [settings.reward_examples for settings in PAPER.values()] == [32, 32, 2, 32, 64, 64, 4, 32]
    assert {PAPER["ViLT", task].skip_num for task in ("vqa", "nlvr2", "retrieval")} == {1}
    assert {task for (_, task), settings in PAPER.items() if settings.reward_split == "train"} == {"nlvr2"}
    assert {task: s.itm_weight for (_, task), s in PAPER.items() if s.itm_weight} == {"retrieval": 0.5}
    snli = PAPER["METER", "snli_ve"]
    assert (snli.learning_rate, snli.head_multiplier, snli.fusion_multiplier, snli.batch_size) == (2e-6, 10.0, 5.0, 64)
    assert (snli.image_size, snli.max_text_length) == (384, 50)


def test_paper_settings_have_sources_and_differences_reasons():
    assert SOURCES.keys() == FIELDS
    assert all(SOURCES.values())
    assert RECIPE_CHANGES.keys() <= FIELDS
    assert all(
        why == "as above" or any(value != getattr(settings, name) for settings in PAPER.values())
        for name, (value, why) in RECIPE_CHANGES.items()
    )


@pytest.mark.parametrize(
    ("changes", "text"), [({"recipe": "papr"}, "did you mean 'paper'"), ({"masks_per_turn": 1}, "masks_per_turn")]
)
def test_wrong_settings(changes, text):
    with pytest.raises(ValueError, match=text):
        das_settings("METER", "vqa", **changes)


def test_paper_command_prints_tables(capsys, monkeypatch):
    monkeypatch.setattr("das_gym.adapt.paper_command.count", lambda row: (1.25, 2.5))  # its numbers are tested separately
    main(PluginSettings())
    printed = capsys.readouterr().out
    settings = printed.partition("Where each comes from:")[0]
    assert "…" not in settings
    assert max(map(len, settings.splitlines())) <= 80
    assert "das-adapt das with vilt_nlvr2 paper checkpoint=FILE" in printed
    assert re.search(r"finetune_learning_rate +(None +)+same", settings)
    assert "data_root=FOLDER das.train_on_reward=False\n" in printed
    assert "llava_slake: (21, 24, 25, 26)" in printed


ROWS = {(row.model, row.title): row for row in PUBLISHED}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "title", "macs"),
    [
        ("METER", "LoRA", 0.0),
        ("METER", "adapter", 1.64),
        ("ViLT", "adapter", 12 * 2 * 2 * 768 * 96 * (40 + 145) / 1e9),  # published are 0.86, of larger images
    ],
)
def test_count_agrees_with_published_parameters_and_macs(model, title, macs):
    row = ROWS[model, title]
    found = count(row)
    assert found[0] == pytest.approx(row.parameters, abs=0.005)
    assert found[1] == pytest.approx(macs, abs=0.005)


def test_published_cells_have_commands():
    for model, tasks in TASKS.items():
        for task, changes in tasks.items():
            name = f"{model.lower()}_{task}"
            assert task in NEEDED_FILES
            assert {word.removeprefix("das.").partition("=")[0] for word in changes} <= FIELDS
            das, compare = (shlex.split(command) for command in commands(model, task, 384))
            assert das[1:4] == ["das", "with", name]
            assert compare[1] in PROGRAM.commands
            assert "image_size=384" in compare
            weight = PAPER[model, named_environments()[name].task].itm_weight
            assert (f"train.itm_weight={weight}" in compare) == bool(weight)
