"""The weights that `adapt das` trained while it searched: saved as a supernet, and optionally the start of fine-tuning."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from das_gym.adapt import load_subnet
from das_gym.adapt.das_experiment import SUPERNET_FILE, ex

from das_gym.experiment import RunError
from das_gym.files import read_json
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_problem

SHORT = {"search_epochs": 1, "warmup_epochs": 0, "finetune_epochs": 0, "skip_num": 2, "batch_size": 80, "reward_examples": 4}


@pytest.mark.slow
@pytest.mark.parametrize("start", ["search", "new"])
def test_finetune_from_decides_what_fine_tuning_starts_from(
    small_kwargs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], start: str
):
    given: dict[str, Any] = {name: value for name, value in small_kwargs.items() if name != "supernet"}
    given["problem"] = {"image_size": 96}
    das = {**SHORT, "finetune_from": start}
    ex.run(config_updates={**given, "runs_dir": str(tmp_path), "references": False, "das": das}, named_configs=["meter_vqa"])
    folder = tmp_path / "1"
    supernet = Adaptation.load(folder / SUPERNET_FILE)
    subnet = load_subnet(folder).adaptation().tensors
    kept = [bool(np.array_equal(supernet.tensors[name], tensor)) for name, tensor in subnet.items()]
    assert all(kept) is (start == "search")
    assert read_json(folder / "das.json")["pipeline"]["finetune_from"] == start
    given |= given.pop("problem")
    problem = load_problem(ProblemConfig(**given, supernet=str(folder / SUPERNET_FILE)))
    assert np.isfinite(problem.evaluator.losses(np.zeros((1, 6), bool), problem.splits.reward[:4])).all()
    printed = capsys.readouterr().out
    assert f"bayes skip_num=2 {shlex.quote(f'supernet={folder / SUPERNET_FILE}')}" in printed


def test_das_rejects_adapter_widths_of_another_checkpoint(small_kwargs: dict[str, str], tmp_path: Path):
    given: dict[str, Any] = {**small_kwargs, "supernet": None, "problem": {"image_size": 96}, "das": {"bottleneck": 24}}
    with pytest.raises(RunError, match=r"got \(16, 64\) .*, expected \(24, 64\)"):
        ex.run(config_updates={**given, "runs_dir": str(tmp_path)})
    assert not list(tmp_path.iterdir())
