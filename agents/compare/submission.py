"""`python -m agents submit FILE`: what a search from elsewhere is worth, scored anew from the bundled tables.

python -m agents submit mine.json                     checks it, and prints its rows of the leaderboard
python -m agents submit mine.json with out=mine.md    writes them as well

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
from das_gym.agents.compare.leaderboard import BUDGETS, EVALUATIONS, SEEDS, find_tables, section
from das_gym.agents.compare.oracle import TableOracle
from das_gym.agents.compare.results import AgentResult, agent_results
from das_gym.agents.compare.traces import NO_ANSWER, Trace

from das_gym.commandline import CommandSettings, parse_or_help
from das_gym.config import near_miss
from das_gym.drawing.command import with_settings
from das_gym.files import read_json, write_text
from das_gym.problem.budget import Masks

MAX_BYTES = 64 * 2**20

NAME = r"\w[\w +.()/-]{,39}"
"""What an agent may be called: it stands in a row of a Markdown table."""


@dataclass(frozen=True)
class SubmitSettings(CommandSettings):
    """The settings of `python -m agents submit`.

    Attributes:
        file: The submission, a JSON file.
        out: A file to write the rows to, as Markdown; None writes none.
    """

    file: str
    out: str | None = None


@dataclass(frozen=True)
class Run:
    """One search of a submission: the masks that it asked about."""

    env_id: str
    budget: Mapping[str, Any]
    seed: int
    masks: Masks

    @property
    def problem(self) -> tuple[str, int]:
        """Table and number of the budget."""
        return self.env_id, BUDGETS.index(self.budget)


def main(words: Sequence[str] = ()) -> None:
    """Check the file that the words name and print its rows."""
    settings = parse_or_help(SubmitSettings, with_settings(words, "file", one=True), "agents submit")
    if settings is None:
        return
    name, runs = read_submission(Path(settings.file).expanduser())
    parts = []
    for oracle, result, seeds in score(name, runs):
        parts.append(f"{section(oracle, [result])}\n\n{_about_seeds(oracle, result, seeds)}\n")
    print("\n".join(parts))
    if len(parts) < len(find_tables(None)) * len(BUDGETS):
        print(f"Sections: {len(parts)}; the leaderboard has more: it wants every bundled table at every budget.")
    if settings.out is not None:
        write_text(settings.out, "\n".join(parts))


def _about_seeds(oracle: TableOracle, result: AgentResult, seeds: int) -> str:
    """How many there are, and how often the first mask asked about was the best one."""
    lines = [f"Seeds: {seeds}{'' if seeds == SEEDS else f'; an entry has {SEEDS}'}."]
    at_once = int((result.needed() == 1).sum())
    if oracle.space.size and at_once > 1 + 5 * seeds / oracle.space.size:
        lines.append(
            f"The best mask is the first one asked about in {at_once} of {seeds} searches, of {oracle.space.size:,}: say in "
            "the pull request from what it was known."
        )
    return "\n".join(lines)


def read_submission(path: Path) -> tuple[str, list[Run]]:
    """The agent's name, and its searches.

    Raises:
        FileNotFoundError: no such file.
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
    read = [_read_run(run, f"{path}, run {number}") for number, run in enumerate(runs)]
    seen: set[tuple] = set()
    for run in read:
        if (key := (run.problem, run.seed)) in seen:
            raise ValueError(f"{path}: seed {run.seed} of {run.env_id} with {dict(run.budget)} is there twice")
        seen.add(key)
    return content["agent"], read


def _read_run(run: Any, where: str) -> Run:
    """One search.

    Raises:
        ValueError: what is wrong with it.
    """
    if not isinstance(run, Mapping):
        raise ValueError(f"{where} is no object")
    env_id, budget, seed, masks = (run.get(key) for key in ("env_id", "budget", "seed", "masks"))
    known = find_tables(None)
    if env_id not in known:  # no "module:id": nothing is imported for a file
        near = near_miss(str(env_id), known)
        hint = f"did you mean {near!r}" if near else f"there are {', '.join(known)}"
        raise ValueError(f"{where}: env_id={env_id!r} is no tabular environment of a bundled table; {hint}")
    if budget not in BUDGETS:
        raise ValueError(f"{where}: budget={budget!r}; the leaderboard has {', '.join(map(str, map(dict, BUDGETS)))}")
    budget = BUDGETS[BUDGETS.index(budget)]  # {"skip_num": 4.0} is equal to one
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < SEEDS:
        raise ValueError(f"{where}: seed={seed!r}; give a whole number from 0 to {SEEDS - 1}")
    if not isinstance(masks, list) or not 1 <= len(masks) <= EVALUATIONS:
        raise ValueError(f"{where}: give 1 to {EVALUATIONS} masks: each is an evaluation")
    for number, mask in enumerate(masks):
        if not isinstance(mask, str) or not mask or set(mask) - {"0", "1"} or len(mask) != len(masks[0]):
            raise ValueError(f"{where}, mask {number} is {mask!r}: give a text of 0 (kept) and 1 (skipped), one a layer")
    array = np.array([[bit == "1" for bit in mask] for mask in masks])
    return Run(env_id, budget, seed, array)


def score(agent: str, runs: Sequence[Run]) -> list[tuple[TableOracle, AgentResult, int]]:
    """What the masks of each table and budget are worth: oracle, result, and how many seeds there are.

    The answer after so many evaluations is the best mask within the budget that was asked about until then.

    Raises:
        ValueError: masks of another width than the table's, or none within the budget.
    """
    groups: defaultdict[tuple, list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.problem].append(run)
    found = []
    for group in groups.values():
        oracle = TableOracle(group[0].env_id, group[0].budget)
        answers, curves = zip(*(_curve(oracle, run) for run in group), strict=True)
        used = np.array([len(run.masks) for run in group])
        found.append(
            (oracle, agent_results(oracle, [Trace(agent, np.array(answers), np.array(curves), used)])[0], len(group))
        )
    return found


def _curve(oracle: TableOracle, run: Run) -> tuple[Masks, np.ndarray]:
    """The final answer, and (EVALUATIONS,) rewards of the answers on the way."""
    if run.masks.shape[1] != oracle.space.n_layers:
        raise ValueError(
            f"{run.env_id}, seed {run.seed}: masks of {run.masks.shape[1]} layers; it has {oracle.space.n_layers}"
        )
    rewards = np.where(oracle.space.contains(run.masks), oracle.rewards(run.masks), NO_ANSWER)
    if not np.isfinite(rewards).any():
        raise ValueError(f"{run.env_id}, seed {run.seed}: no mask keeps the budget, {oracle.space.budget.describe()}")
    curve = np.maximum.accumulate(rewards)
    return run.masks[rewards.argmax()], np.concatenate((curve, np.full(EVALUATIONS - len(curve), curve[-1])))
