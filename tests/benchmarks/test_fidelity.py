from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from das_gym.adapt.commands import main as adapt_main
from das_gym.agents.commands import main as agents_main

from benchmarks.fidelity import advice, drawn_masks, interval, known, main, predictors, ranks, report, spearman
from das_gym.registration import ENVIRONMENTS
from das_gym.shapes.vqa import write_shapes
from das_gym.tables.table import SubnetTable
from tests.registered import as_before


@pytest.fixture(scope="module")
def table() -> SubnetTable:
    return SubnetTable.load(ENVIRONMENTS["DAS-METER-VQA-v0"].table)


def test_equal_values_share_their_ranks():
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 25.0])) == pytest.approx(1.0)
    assert spearman(np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 1.0, 4.0, 3.0])) == pytest.approx(0.6)
    assert np.isnan(spearman(np.ones(3), np.arange(3.0)))


def test_masks_are_half_of_the_best_tenth(table: SubnetTable):
    masks, top = drawn_masks(table, 4, 11)
    assert masks.shape == (11, 12)
    assert (masks.sum(axis=1) == 4).all()
    assert len(np.unique(masks, axis=0)) == 11
    placed = table.rank(masks, "exp_neg_loss", skip_num=4)
    assert top.tolist() == [True] * 5 + [False] * 6
    assert (placed[top] <= 49).all()
    assert (placed[~top] > 49).all()


def test_fidelity_separates_true_scores_from_noise(table: SubnetTable):
    masks, top = drawn_masks(table, 4, 30)
    reward = predictors(table, masks)["reward"]
    text = report(table, masks, top, np.stack((reward, reward[::-1]), axis=1)[:, :1])
    (line,) = [line for line in text.splitlines() if line.startswith("| reward |")]
    assert line == "| reward | 1.00 [1.00, 1.00] | 1.00 [1.00, 1.00] | 0.0 |"
    assert "30 masks, 1 seeds" in text
    assert "between seeds" not in text
    low, high = interval(reward, np.random.default_rng(3).permutation(reward))
    assert low < 0 < high
    assert "| 15 steps of fine-tuning | 1.00 [1.00, 1.00] |" in report(table, masks, top, reward[:, None], {15: 2 * reward})
    assert "| between seeds | " in report(table, masks, top, np.stack((reward, reward[::-1]), axis=1))


def test_fidelity_compares_results_and_seeds(table: SubnetTable):
    masks, top = drawn_masks(table, 4, 4)
    metrics = np.array([[0.9, 0.94], [0.95, 0.95], [0.2, 0.2], [0.5, 0.5]])
    words = "between 20.0 and 95.0 %, in the best tenth from 92.0 % on"
    assert words in report(table, masks, top, metrics.mean(axis=1, keepdims=True)).splitlines()
    both = f"{words}, where seeds of one mask scatter by 2.00 points (standard deviation)"
    assert both in report(table, masks, top, metrics).splitlines()


@pytest.mark.parametrize(
    ("rhos", "count", "words"),
    [
        ((0.9, 0.7), 20, "orders the best (rho 0.70): trust it"),
        ((0.9, 0.37), 20, "does not order the best (rho 0.37, below 0.6): `python -m adapt with refine=8` tries"),
        ((0.9, np.nan), 4, "(rho nan, below 0.6, of 4 masks, which say little: take more by --masks)"),
        ((0.5, 0.9), 20, "(rho 0.50, below 0.8): train the supernet longer"),
    ],
)
def test_advice_for_a_correlation(rhos: tuple[float, float], count: int, words: str):
    assert words in advice(*rhos, count)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--run", "nowhere"], "nowhere/config.json"),
        (["--env", "vlm_answering", "--start", "supernet"], "vlm_answering has no supernet: --start new alone"),
    ],
)
def test_invalid_arguments_are_rejected(words: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(words)
    assert said in capsys.readouterr().err


def test_fidelity_imports_nothing_for_untrusted_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "config.json").write_text('{"plugins": ["evil"]}')
    with pytest.raises(SystemExit):
        main(["--run", str(tmp_path)])
    assert "evil" in capsys.readouterr().err
    assert "evil" not in sys.modules


TASK = """
from das_gym import TaskEntry, register_task
from das_gym.tasks.vqa.task import VQATask


class Mine(VQATask):
    name = "mine"
    pretrained_head = None


register_task(TaskEntry("mine", "Mine", "fidelity_task:Mine", "VQAv2's files"))
"""


@pytest.mark.long
def test_custom_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A registered task on custom data: a supernet, a run of `agents table`, and fidelity of that run."""
    (tmp_path / "fidelity_task.py").write_text(TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write_shapes(tmp_path / "data", train_scenes=20, val_scenes=12)
    words = ["with", "plugins=fidelity_task", "model=METER", "task=mine", "data_root=data", "device=cpu"]
    with as_before():
        for command in (adapt_main, ["supernet", *words, "train.steps=2"]), (agents_main, ["table", *words, *TABLE]):
            with pytest.raises(SystemExit) as end:
                command[0](["command", *command[1]])
            assert not end.value.code
    with as_before():
        sys.modules.pop("fidelity_task")
        main(
            [
                "--run",
                "runs/2",
                "--plugins",
                "fidelity_task",
                "--masks",
                "2",
                "--skip-num",
                "1",
                "--steps",
                "1",
                "--test-examples",
                "8",
            ]
        )
    printed = capsys.readouterr().out
    assert "runs/2, 1 layers skipped, 1 steps, adapters: supernet" in printed
    assert "runs/2, 1 layers skipped, 1 steps, adapters: new" in printed


TABLE = ("supernet=runs/1/supernet.safetensors", "max_skipped=1", "reward_examples=8", "test_examples=8")


@pytest.mark.slow
def test_command_saves_every_training_and_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--masks", "2", "--steps", "1", "--test-examples", "8", "--out", str(tmp_path / "fidelity.json")]
    main([*words, "--start", "new"])
    first = json.loads((tmp_path / "fidelity.json").read_text())["trained"]
    assert len(first) == 2
    main([*words, "--short", "1"])
    both = json.loads((tmp_path / "fidelity.json").read_text())["trained"]
    assert len(both) == 6
    assert sum(name.startswith("short 1 1000 ") for name in both) == 2
    assert both.items() >= first.items()
    printed = capsys.readouterr().out
    assert "adapters: supernet" in printed
    assert "| sum of leave_one_out |" in printed
    assert "| 1 steps of fine-tuning |" in printed


def test_fidelity_rejects_a_file_of_other_settings(tmp_path: Path):
    path = tmp_path / "fidelity.json"
    settings = {"env": "meter_vqa", "steps": 300, "skip_num": 4, "test_examples": None}
    assert known(path, settings) == {}
    path.write_text(json.dumps({"settings": settings, "trained": {"new 0 1010": 0.5}}))
    assert known(path, settings) == {"new 0 1010": 0.5}
    with pytest.raises(ValueError, match=r"fidelity\.json was made with .*'steps': 300.* give another file"):
        known(path, {**settings, "steps": 100})
