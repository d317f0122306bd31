"""Annotators who disagree: soft targets, partial credit and its ceiling, against the official formula written out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from das_gym.shapes.scenes import COLORS, SHAPES
from das_gym.shapes.vqa import write_shapes

SCENES = {"train_scenes": 60, "val_scenes": 40}
KINDS = ({"yes", "no"}, set(COLORS), set(SHAPES))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("data") / "split", disagreement=0.35, **SCENES)


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
