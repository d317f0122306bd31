"""`python -m agents submit FILE`: what a search from elsewhere is worth, scored anew from tables.

python -m agents submit mine.json                     checks it, and prints its rows of the leaderboard
python -m agents submit mine.json with out=mine.md    writes them as well
python -m agents submit mine.json with suite=FOLDER   its problems of `DAS-Suite-v0` are those of another suite

SUBMISSIONS.md says what the file holds. Nothing in it is believed but the masks, in the order in which they were asked for.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.agents.ask_tell.base import AGENTS
from das_gym.agents.compare.aggregate import aggregate, summary
from das_gym.agents.compare.leaderboard import (
    BUDGETS,
    EVALUATIONS,
    SEEDS,
    UNSEEN_EVALUATIONS,
    UNSEEN_SEEDS,
    find_tables,
    section,
)
from das_gym.agents.compare.oracle import SuiteOracle, TableOracle
from das_gym.agents.compare.results import AgentResult, agent_results
from das_gym.agents.compare.traces import NO_ANSWER, Trace
from das_gym.agents.compare_experiment import checkpoints

from das_gym.commandline import CommandSettings, parse_or_help
from das_gym.config import check_names, near_miss
from das_gym.drawing.command import with_settings
from das_gym.files import at_home, read_json, write_text
from das_gym.problem.budget import Masks
from das_gym.tables.suite import SUITE_SPLITS, load_suite

SUITE_ID = "DAS-Suite-v0"
UNSEEN_SPLIT = "test"
"""The suite's problems that the leaderboard has."""

MAX_BYTES = 64 * 2**20

NAME = r"\w[\w +.()/-]{,39}"
"""What an agent may be called: it stands in a row of a Markdown table."""


@dataclass(frozen=True)
class SubmitSettings(CommandSettings):
    """The settings of `python -m agents submit`.

    Attributes:
        file: JSON file of the submission.
        out: Markdown file to write the rows to. None only prints them.
        suite: Folder of the suite that the submission names. None uses the bundled one.
    """

    file: str
    out: str | None = None
    suite: str | None = None


@dataclass(frozen=True)
class OnTable:
    """A bundled table at one of the leaderboard's budgets.

    Attributes:
        env_id: Of its tabular environment.
        number: Of the budget.
    """

    env_id: str
    number: int
    evaluations = EVALUATIONS
    seeds = SEEDS

    def __str__(self) -> str:
        return f"{self.env_id} with {dict(BUDGETS[self.number])}"

    def oracle(self) -> TableOracle:
        """What knows its masks."""
        return TableOracle(self.env_id, BUDGETS[self.number])


@dataclass(frozen=True)
class OnSuite:
    """A problem of a suite.

    Attributes:
        split: Where it is.
        problem: Its name.
        suite: Folder; None = the bundled one.
    """

    split: str
    problem: str
    suite: str | None = None
    evaluations = UNSEEN_EVALUATIONS
    seeds = UNSEEN_SEEDS

    def __str__(self) -> str:
        return self.problem

    def oracle(self) -> SuiteOracle:
        """What knows its masks."""
        suite = load_suite(self.suite, self.split)
        return SuiteOracle(suite.problems[suite.index(self.problem)], suite.statistics)


@dataclass(frozen=True)
class Run:
    """One search of a submission: the masks that it asked about."""

    problem: OnTable | OnSuite
    seed: int
    masks: Masks


@dataclass(frozen=True)
class Scored:
    """What the searches of one problem are worth; `seeds` of them."""

    problem: OnTable | OnSuite
    oracle: TableOracle | SuiteOracle
    result: AgentResult
    seeds: int


def main(words: Sequence[str] = ()) -> None:
    """Check the file that the words name and print its rows."""
    settings = parse_or_help(SubmitSettings, with_settings(words, "file", one=True), "agents submit")
    if settings is None:
        return
    scored = score(*read_submission(at_home(settings.file), settings.suite))
    on_tables = [each for each in scored if isinstance(each.oracle, TableOracle)]
    parts = [f"{section(each.oracle, [each.result])}\n\n{_about([each])}\n" for each in on_tables]  # type: ignore[arg-type]
    for split in SUITE_SPLITS:
        if found := [each for each in scored if isinstance(each.problem, OnSuite) and each.problem.split == split]:
            parts.append(_unseen(split, found, settings.suite))
    print("\n".join(parts))
    if 0 < len(on_tables) < len(find_tables(None)) * len(BUDGETS):
        print(f"Sections: {len(on_tables)}; the leaderboard has more: it wants every bundled table at every budget.")
    if settings.out is not None:
        write_text(settings.out, "\n".join(parts))


def _unseen(split: str, scored: Sequence[Scored], folder: str | None) -> str:
    """The row of a split's problems together, as the leaderboard has that of `test`."""
    counts, whole = checkpoints(UNSEEN_EVALUATIONS), len(load_suite(folder, split).problems)
    row = aggregate([each.oracle for each in scored], [each.result for each in scored], counts)
    many = f"Problems: {len(scored)}{'' if len(scored) == whole else f' of {whole}; an entry has all'}."
    where = f"`{SUITE_ID}`, `{split}`" if folder is None else f"`{SUITE_ID}` with suite={folder}, `{split}`"
    lines = [f"### {where}", "", summary([row], counts), "", many, _about(scored)]
    if split != UNSEEN_SPLIT or folder is not None:
        lines.append(f"The leaderboard has the bundled suite's `{UNSEEN_SPLIT}`, no other problems of suites.")
    return "\n".join(lines) + "\n"


def _about(scored: Sequence[Scored]) -> str:
    """How many seeds there are, and how often the first mask asked about was the best one."""
    wanted, seeds = scored[0].problem.seeds, scored[0].seeds
    lines = [f"Seeds: {seeds}{'' if seeds == wanted else f'; an entry has {wanted}'}."]
    sizes = [each.oracle.space.size for each in scored]
    at_once = sum(int((each.result.needed() == 1).sum()) for each in scored)
    if all(sizes) and at_once > 1 + 5 * sum(each.seeds / (size or 1) for each, size in zip(scored, sizes, strict=True)):
        of = f", of {sizes[0]:,}" if len(scored) == 1 else ""
        lines.append(
            f"The best mask is the first one asked about in {at_once} of {sum(each.seeds for each in scored)} searches{of}: "
            "say in the pull request from what it was known."
        )
    return "\n".join(lines)


def read_submission(path: Path, suite: str | None = None) -> tuple[str, list[Run]]:
    """The agent's name, and its searches.

    Args:
        path: The file.
        suite: Folder of the suite whose problems it names; None = the bundled one.

    Raises:
        FileNotFoundError: no such file, or no suite there.
        ValueError: it is no submission; the text says what is wrong in which run.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: name a submission, a JSON file; SUBMISSIONS.md says what it holds")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES >> 20} MiB: no submission is")
    content = read_json(path)
    if not isinstance(content, Mapping) or not isinstance(content.get("agent"), str):
        raise ValueError(f'{path}: give {{"agent": "<its name>", "runs": [...]}}; SUBMISSIONS.md says what a run holds')
    if not re.fullmatch(NAME, content["agent"]):
        raise ValueError(
            f"{path}: agent={content['agent']!r} is no name for a row; use up to 40 letters, digits, spaces and _+.()/-"
        )
    if content["agent"].lower() in AGENTS:
        raise ValueError(f"{path}: agent={content['agent']!r} is one of das_gym's; give your own a name of its own")
    runs = content.get("runs")
    if not isinstance(runs, list) or not runs:
        raise ValueError(f"{path}: runs is no list of searches")
    read = [_read_run(run, f"{path}, run {number}", suite) for number, run in enumerate(runs)]
    seen: set[tuple] = set()
    for run in read:
        if (key := (run.problem, run.seed)) in seen:
            raise ValueError(f"{path}: seed {run.seed} of {run.problem} is there twice")
        seen.add(key)
    return content["agent"], read


def _read_run(run: Any, where: str, suite: str | None) -> Run:
    """One search.

    Raises:
        ValueError: what is wrong with it.
    """
    if not isinstance(run, Mapping):
        raise ValueError(f"{where} is no object")
    problem = _on_suite(run, where, suite) if run.get("env_id") == SUITE_ID else _on_table(run, where)
    seed, masks = run.get("seed"), run.get("masks")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < problem.seeds:
        raise ValueError(f"{where}: seed={seed!r}; give a whole number from 0 to {problem.seeds - 1}")
    if not isinstance(masks, list) or not 1 <= len(masks) <= problem.evaluations:
        raise ValueError(f"{where}: give 1 to {problem.evaluations} masks: each is an evaluation")
    for number, mask in enumerate(masks):
        if not isinstance(mask, str) or not mask or set(mask) - {"0", "1"} or len(mask) != len(masks[0]):
            raise ValueError(f"{where}, mask {number} is {mask!r}: give a text of 0 (kept) and 1 (skipped), one a layer")
    return Run(problem, seed, np.array([[bit == "1" for bit in mask] for mask in masks]))


def _on_table(run: Mapping[str, Any], where: str) -> OnTable:
    """The table that a run is of."""
    env_id, budget, known = run.get("env_id"), run.get("budget"), (*find_tables(None), SUITE_ID)
    if env_id not in known:  # no "module:id": nothing is imported for a file
        near = near_miss(str(env_id), known)
        hint = f"did you mean {near!r}" if near else f"there are {', '.join(known)}"
        raise ValueError(f"{where}: env_id={env_id!r} is no tabular environment of a bundled table; {hint}")
    if budget not in BUDGETS:
        raise ValueError(f"{where}: budget={budget!r}; the leaderboard has {', '.join(map(str, map(dict, BUDGETS)))}")
    return OnTable(env_id, BUDGETS.index(budget))  # {"skip_num": 4.0} is equal to one


def _on_suite(run: Mapping[str, Any], where: str, suite: str | None) -> OnSuite:
    """The problem of a suite that a run is of."""
    split, problem = run.get("split", UNSEEN_SPLIT), run.get("problem")
    if run.get("budget") is not None:
        raise ValueError(f"{where}: budget={run['budget']!r}: a problem of a suite has its own; leave it out")
    if not isinstance(problem, str):
        raise ValueError(f"{where}: problem={problem!r}; give its name, as `problem_names` of {SUITE_ID} has it")
    try:
        check_names([split], SUITE_SPLITS, "split")
        load_suite(suite, split).index(problem)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return OnSuite(split, problem, suite)


def score(agent: str, runs: Sequence[Run]) -> list[Scored]:
    """What the masks of each problem are worth.

    The answer after so many evaluations is the best mask within the budget that was asked about until then.

    Raises:
        ValueError: masks of another width than the table's, none within the budget, or problems of one split of a suite with
            different seeds: a row tells of all of them together.
    """
    groups: defaultdict[OnTable | OnSuite, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.problem].append(run)
    _check_seeds(groups)
    found = []
    for problem, group in groups.items():
        oracle = problem.oracle()
        answers, curves = zip(*(_curve(oracle, run) for run in group), strict=True)
        used = np.array([len(run.masks) for run in group])
        result = agent_results(oracle, [Trace(agent, np.array(answers), np.array(curves), used)])[0]
        found.append(Scored(problem, oracle, result, len(group)))
    return found


def _check_seeds(groups: Mapping[OnTable | OnSuite, Sequence[Run]]) -> None:
    """Refuse problems of one split with different seeds."""
    first: dict[str, tuple[OnSuite, list[int]]] = {}
    for problem, group in groups.items():
        if isinstance(problem, OnSuite):
            seeds = sorted(run.seed for run in group)
            other, theirs = first.setdefault(problem.split, (problem, seeds))
            if seeds != theirs:
                raise ValueError(
                    f"{problem} has the seeds {seeds}, and {other} {theirs}: give all problems of `{problem.split}` the same"
                )


def _curve(oracle: TableOracle | SuiteOracle, run: Run) -> tuple[Masks, np.ndarray]:
    """The final answer, and (evaluations,) rewards of the answers on the way."""
    if run.masks.shape[1] != oracle.space.n_layers:
        raise ValueError(
            f"{run.problem}, seed {run.seed}: masks of {run.masks.shape[1]} layers; it has {oracle.space.n_layers}"
        )
    rewards = np.where(oracle.space.contains(run.masks), oracle.rewards(run.masks), NO_ANSWER)
    if not np.isfinite(rewards).any():
        raise ValueError(f"{run.problem}, seed {run.seed}: no mask keeps the budget, {oracle.space.budget.describe()}")
    curve = np.maximum.accumulate(rewards)
    return run.masks[rewards.argmax()], np.concatenate((curve, np.full(run.problem.evaluations - len(curve), curve[-1])))
