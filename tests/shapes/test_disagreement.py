"""Annotators who disagree: soft targets, partial credit and its ceiling, against the official formula written out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from das_gym.adapt.commands import main

from das_gym.shapes.scenes import COLORS, SHAPES
from das_gym.shapes.vqa import write_shapes
from das_gym.tasks.vqa.task import VQATask
from das_gym.tasks.vqa.vqav2 import load_vqav2

SCENES = {"train_scenes": 60, "val_scenes": 40}
KINDS = ({"yes", "no"}, set(COLORS), set(SHAPES))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "split", disagreement=0.35, **SCENES)


@pytest.fixture(scope="module")
def task(folder: Path) -> VQATask:
    answers = sorted({a for e in load_vqav2(folder).train for a in e.answers} - {"0", "circle"})  # some it cannot say
    return VQATask(cast(Any, None), answers)  # nothing here makes a batch


def official(answer: str, answers: tuple[str, ...]) -> float:
    """Leave one annotator out at a time, min(1, matches among the others / 3), and take the mean."""
    left = [answers[:out] + answers[out + 1 :] for out in range(len(answers))]
    return float(np.mean([min(1.0, sum(other == answer for other in others) / 3) for others in left]))


def annotations(folder: Path, split: str = "train2014") -> list[dict]:
    return json.loads((folder / f"v2_mscoco_{split}_annotations.json").read_text())["annotations"]


def test_disagreement_changes_only_annotations(folder: Path, tmp_path: Path):
    agreeing = write_shapes(tmp_path / "agreeing", **SCENES)
    names = {path.relative_to(agreeing) for path in agreeing.rglob("*") if path.is_file()}
    changed = {name for name in names if (agreeing / name).read_bytes() != (folder / name).read_bytes()}
    assert {name.name for name in changed} == {f"v2_mscoco_{split}_annotations.json" for split in ("train2014", "val2014")}
    for right, entry in zip(annotations(agreeing), annotations(folder), strict=True):
        said = [answer["answer"] for answer in entry["answers"]]
        truth = right["multiple_choice_answer"]
        assert len(said) == 10
        assert Counter(said)[entry["multiple_choice_answer"]] == max(Counter(said).values())
        for answer in set(said) - {truth}:
            if entry["answer_type"] == "number":
                assert abs(int(answer) - int(truth)) == 1
                assert int(answer) >= 0
            else:
                assert any({answer, truth} <= kind for kind in KINDS)
    wrong = np.mean([a["answer_confidence"] == "maybe" for entry in annotations(folder) for a in entry["answers"]])
    assert wrong == pytest.approx(0.35, abs=0.03)


def test_targets_are_the_official_ones(folder: Path, task: VQATask):
    examples = load_vqav2(folder).train
    targets = task.targets(examples)
    for row, example in enumerate(examples):
        counts = Counter(example.answers)
        for column, answer in enumerate(task.labels):
            assert float(targets["accuracy"][row, column]) == pytest.approx(official(answer, example.answers), abs=1e-6)
            soft = (0.0, 0.3, 0.6, 0.9, 1.0)[min(counts[answer], 4)]
            assert float(targets["scores"][row, column]) == pytest.approx(soft)
    seen = {round(float(value), 4) for value in targets["accuracy"].flatten()}
    assert seen == {0.0, 0.3, 0.6, 0.9, 1.0}


def test_summary_has_means_of_the_official_accuracy(folder: Path, task: VQATask):
    examples = load_vqav2(folder).test
    logits = torch.randn(len(examples), len(task.labels), generator=torch.Generator().manual_seed(0))
    metrics = task.metrics(logits, task.targets(examples)).numpy()
    chosen = [task.labels[number] for number in logits.argmax(-1).tolist()]
    credit = [official(answer, example.answers) for answer, example in zip(chosen, examples, strict=True)]
    np.testing.assert_allclose(metrics, credit, atol=1e-6)
    best = [max(official(answer, example.answers) for answer in task.labels) for example in examples]
    told = task.summary(examples, np.zeros(len(examples)), metrics)
    assert told["accuracy"] == pytest.approx(np.mean(credit), abs=1e-6)
    assert told["ceiling"] == pytest.approx(np.mean(best))
    assert told["ceiling"] < 1
    kinds = {e.question_type for e in examples}
    assert len(kinds) == 5
    for kind in kinds:
        rows = [row for row, example in enumerate(examples) if example.question_type == kind]
        assert told[f"question/{kind}"] == pytest.approx(np.mean([credit[row] for row in rows]), abs=1e-6)
        assert told[f"ceiling/question/{kind}"] == pytest.approx(np.mean([best[row] for row in rows]))


def exit_code(words: list[str]) -> int:
    """Of a command that is run in this process."""
    with pytest.raises(SystemExit) as end:
        main(words)
    return int(end.value.code or 0)


def test_the_command_writes_disagreement(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["adapt", "shapes", "with", f"out={tmp_path / 'new'}", "train_scenes=3", "val_scenes=30", "disagreement=0.5"]
    assert exit_code(words) == 0
    assert capsys.readouterr().out == f"data_root={tmp_path / 'new'}\n"
    assert len({answer["answer"] for entry in annotations(tmp_path / "new") for answer in entry["answers"][:1]}) > 1
    assert any(len({answer["answer"] for answer in entry["answers"]}) > 1 for entry in annotations(tmp_path / "new"))
    assert exit_code(words) != 0
    assert "exists" in capsys.readouterr().err
