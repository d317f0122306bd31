"""Searches from elsewhere: their masks are scored anew, and nothing else in the file is believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from das_gym.agents import make_agent
from das_gym.agents.commands import PROGRAM
from das_gym.agents.compare import submission
from das_gym.agents.compare.aggregate import aggregate
from das_gym.agents.compare.oracle import SuiteOracle, TableOracle
from das_gym.agents.compare.results import compare
from das_gym.agents.compare.submission import read_submission, score
from das_gym.agents.searching.loop import agent_generator

from das_gym.tables.suite import SuiteProblem, load_suite

ID = "DAS-METER-VQA-Tabular-v0"
UNSEEN = "test-3/vqa/all/skip_num=3"
"""A problem of the made-up suite, of 7 units."""


def text(mask: np.ndarray) -> str:
    return "".join("01"[int(bit)] for bit in mask)


def write(path: Path, *runs: dict[str, Any], **others: Any) -> Path:
    path.write_text(json.dumps({"agent": "mine", "runs": list(runs), **others}))
    return path


def run(**changes: Any) -> dict[str, Any]:
    return {"env_id": ID, "budget": {"skip_num": 4}, "seed": 0, "masks": ["010101000010"], **changes}


def on_suite(**changes: Any) -> dict[str, Any]:
    return {"env_id": "DAS-Suite-v0", "problem": UNSEEN, "seed": 0, "masks": ["0110100"], **changes}


def best_of(problem: SuiteProblem) -> np.ndarray:
    kept = problem.budget.is_kept_by(problem.table.masks)
    return problem.table.masks[np.where(kept, problem.rewards, -np.inf).argmax()]


def test_what_random_search_hands_in_is_worth_what_the_leaderboard_says(tmp_path):
    oracle, runs = TableOracle(ID, {"skip_num": 4}), []
    for seed in range(3):
        agent, masks = make_agent("random", oracle.space, agent_generator(seed)), []
        for _ in range(40):
            masks += list(asked := agent.ask(3))
            agent.tell(asked, oracle.rewards(asked))
        runs.append(run(seed=seed, masks=[text(mask) for mask in masks], rewards=[9.0]))
    (scored,) = score(*read_submission(write(tmp_path / "mine.json", *runs)))
    (expected,) = compare(oracle, ["random"], range(3), 120, masks_per_turn=1)
    found = scored.result
    assert scored.seeds == 3
    assert found.answers.tolist() == expected.answers.tolist()
    np.testing.assert_array_equal(found.rewards, expected.rewards)
    assert found.test_metrics.tolist() == expected.test_metrics.tolist()


def test_masks_off_the_budget_count_and_are_no_answer(tmp_path):
    masks = ["000000000000", "010101000010"]
    (scored,) = score(*read_submission(write(tmp_path / "mine.json", run(masks=masks))))
    found = scored.result
    assert np.isinf(found.regret[0, 0])
    assert found.regret[0, 1] == found.regret[0, -1] == 0
    assert found.evaluations.tolist() == [2]


def test_as_a_command(tmp_path, capsys):
    path, out = write(tmp_path / "mine.json", run()), tmp_path / "rows.md"
    assert PROGRAM.run(["submit", str(path), "with", f"out={out}"]) == 0
    printed = capsys.readouterr().out
    assert "| mine |" in printed
    assert "Seeds: 1; an entry has 100." in printed
    assert "the first one asked about" not in printed  # once may be luck
    assert out.read_text() in printed


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"env_id": "DAS-METER-VQA-Tabulr-v0"}, "did you mean 'DAS-METER-VQA-Tabular-v0'"),
        ({"env_id": f"evil:{ID}"}, "is no tabular environment"),
        ({"env_id": "DAS-METER-SNLI-VE-Tabular-v0"}, "is no tabular environment of a bundled table"),
        ({"budget": {"skip_num": 5}}, "budget={'skip_num': 5}; the leaderboard has"),
        ({"seed": "0"}, "seed='0'; give a whole number from 0 to 99"),
        ({"seed": True}, "seed=True; give a whole number from 0 to 99"),
        ({"masks": ["010101000010", "0101"]}, "mask 1 is '0101': give a text of 0 .kept. and 1 .skipped., one a layer"),
        ({"seed": -1}, "seed=-1; give a whole number from 0 to 99"),
        ({"seed": 100}, "seed=100; give a whole number from 0 to 99"),
        ({"masks": []}, "give 1 to 120 masks"),
        ({"masks": ["010101000010"] * 121}, "give 1 to 120 masks"),
        ({"masks": ["01010100001x"]}, "give a text of 0"),
        ({"masks": [[0, 1]]}, "give a text of 0"),
        ({"masks": ["0101"]}, "masks of 4 layers; it has 12"),
        ({"masks": ["000000000000"]}, "no mask keeps the budget, exactly 4 of 12 layers"),
    ],
)
def test_what_is_wrong_is_told(tmp_path, changes, says):
    with pytest.raises(ValueError, match=says):
        score(*read_submission(write(tmp_path / "mine.json", run(**changes))))


@pytest.mark.parametrize("name", ["", "a|b", "two\nlines", "<script>", "a" * 41])
def test_a_name_stands_in_a_row_of_the_table(tmp_path, name):
    with pytest.raises(ValueError, match="is no name for a row"):
        read_submission(write(tmp_path / "mine.json", run(), agent=name))


@pytest.mark.parametrize("name", ["bayes", "Bandit"])
def test_our_own_names_are_ours(tmp_path, name):
    with pytest.raises(ValueError, match="is one of das_gym's"):
        read_submission(write(tmp_path / "mine.json", run(), agent=name))


def test_a_budget_may_be_written_as_another_kind_of_number(tmp_path):
    (scored,) = score(*read_submission(write(tmp_path / "mine.json", run(budget={"skip_num": 4.0}))))
    assert scored.oracle.space.skip_num == 4


def test_what_knew_the_best_mask_beforehand_is_asked_how(tmp_path, capsys):
    best = text(TableOracle(ID, {"skip_num": 4}).table.best(skip_num=4))
    path = write(tmp_path / "mine.json", *(run(seed=seed, masks=[best]) for seed in range(3)))
    assert PROGRAM.run(["submit", str(path)]) == 0
    assert "The best mask is the first one asked about in 3 of 3 searches, of 495" in capsys.readouterr().out


def test_no_file_is_told_in_words(tmp_path, capsys):
    for path in (tmp_path / "none.json", tmp_path):
        assert PROGRAM.run(["submit", str(path)]) == 1
        assert f"error: no file {path}: name a submission" in capsys.readouterr().err


def test_a_file_that_no_submission_fills_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "MAX_BYTES", 10)
    with pytest.raises(ValueError, match="is larger than 0 MiB: no submission is"):
        read_submission(write(tmp_path / "mine.json", run()))


def test_a_seed_comes_once(tmp_path):
    with pytest.raises(ValueError, match=r"seed 0 of DAS-METER-VQA-Tabular-v0 with \{'skip_num': 4\} is there twice"):
        read_submission(write(tmp_path / "mine.json", run(), run()))


@pytest.mark.parametrize("content", ["[]", "{}", '{"agent": "a"}', '{"agent": "a", "runs": [1]}', "\x00", "{"])
def test_what_is_no_submission_is_refused(tmp_path, content):
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"mine\.json"):
        read_submission(path)


def test_problems_of_a_suite_are_worth_what_the_leaderboard_says(tmp_path, made_up_suite, capsys):
    suite, runs, oracles = load_suite(made_up_suite, "test"), [], []
    for problem in suite.problems[:3]:
        oracle = SuiteOracle(problem, suite.statistics)
        oracles.append(oracle)
        for seed in range(2):
            agent, masks = make_agent("random", oracle.space, agent_generator(seed)), []
            for _ in range(10):
                masks += list(asked := agent.ask(3))
                agent.tell(asked, oracle.rewards(asked))
            runs.append(on_suite(problem=problem.name, seed=seed, split="test", masks=[text(mask) for mask in masks]))
    path = write(tmp_path / "mine.json", *runs)
    scored = score(*read_submission(path, str(made_up_suite)))
    assert [each.oracle.env_id for each in scored] == [problem.name for problem in suite.problems[:3]]
    expected = [compare(oracle, ["random"], range(2), 60, masks_per_turn=1)[0] for oracle in oracles]
    for each, by_us in zip(scored, expected, strict=True):
        np.testing.assert_array_equal(each.result.regret[:, :30], by_us.regret[:, :30])
        assert each.result.evaluations.tolist() == np.minimum(by_us.evaluations, 30).tolist()
        assert each.result.regret.shape == (2, 60)
    assert PROGRAM.run(["submit", str(path), "with", f"suite={made_up_suite}", f"out={tmp_path / 'rows.md'}"]) == 0
    printed = capsys.readouterr().out
    row = aggregate([each.oracle for each in scored], [each.result for each in scored], (15, 30, 60))
    assert f"| mine | {row.means[0]:.4f} [" in printed
    assert printed.count("| mine |") == 1
    assert f"Problems: 3 of {len(suite.problems)}; an entry has all.\nSeeds: 2; an entry has 5.\n" in printed
    assert (tmp_path / "rows.md").read_text() in printed


def test_problems_of_a_suite_and_tables_go_into_one_file(tmp_path, made_up_suite, capsys):
    further = on_suite(split="valid", problem="valid-2/vqa/color/skip_num=3")
    path = write(tmp_path / "mine.json", run(), on_suite(), further)
    assert PROGRAM.run(["submit", str(path), "with", f"suite={made_up_suite}"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("| mine |") == 3
    assert "Sections: 1; the leaderboard has more" in printed
    assert "The leaderboard has the bundled suite's `test`, no other problems of suites." in printed


def test_the_bundled_suite_is_the_one_that_is_meant(tmp_path, capsys):
    suite = load_suite(None, "test")
    runs = [
        on_suite(problem=problem.name, seed=seed, masks=[text(best_of(problem))])
        for problem in suite.problems[:4]
        for seed in range(5)
    ]
    path = write(tmp_path / "mine.json", *runs)
    assert PROGRAM.run(["submit", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "### `DAS-Suite-v0`, `test`" in printed
    assert "| mine | 0.0000 [0.0000, 0.0000]" in printed
    assert "The best mask is the first one asked about in 20 of 20 searches: say" in printed
    assert "Seeds: 5.\n" in printed
    assert "no other problems" not in printed


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"problem": "test-3/vqa/al/skip_num=3"}, f"run 0: problem=.*did you mean '{UNSEEN}'"),
        ({"problem": 0}, "problem=0; give its name"),
        ({"split": "tset"}, "unknown split 'tset'; did you mean 'test'"),
        ({"split": ["test"]}, "unknown split"),
        ({"split": "train"}, "this split has problems 0"),
        ({"budget": {"skip_num": 3}}, "a problem of a suite has its own; leave it out"),
        ({"seed": 5}, "seed=5; give a whole number from 0 to 4"),
        ({"masks": ["0110100"] * 61}, "give 1 to 60 masks"),
        ({"masks": ["0110100" + "0" * 9]}, "masks of 16 layers; it has 7"),
        ({"masks": ["0110101"]}, "no mask keeps the budget, exactly 3 of 7 layers"),
    ],
)
def test_what_is_wrong_with_a_problem_of_a_suite_is_told(tmp_path, made_up_suite, changes, says):
    with pytest.raises(ValueError, match=says):
        score(*read_submission(write(tmp_path / "mine.json", on_suite(**changes)), str(made_up_suite)))


def test_problems_of_a_split_have_the_same_seeds_each_once(tmp_path, made_up_suite):
    other = on_suite(problem="test-3/vqa/color/skip_num=3", seed=1)
    with pytest.raises(ValueError, match=r"color/skip_num=3 has the seeds \[1\], and .*all/skip_num=3 \[0\]: give all"):
        score(*read_submission(write(tmp_path / "mine.json", on_suite(), other), str(made_up_suite)))
    with pytest.raises(ValueError, match=f"seed 0 of {UNSEEN} is there twice"):
        read_submission(write(tmp_path / "mine.json", on_suite(), on_suite()), str(made_up_suite))


def test_a_folder_without_a_suite_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m adapt suite"):
        read_submission(write(tmp_path / "mine.json", on_suite()), str(tmp_path))
