"""Methods of choosing layers side by side, at the same budget, before and after the same recovery.

python -m adapt shrink compare                                                       the bundled model, 20 % of the MACs
python -m adapt shrink compare with recover=none                                     faster: deletion alone
python -m adapt shrink compare with checkpoint=DIR data_root=DIR skip_num=4 'methods=["bayes","sleb","random"]'
python -m adapt shrink compare with resume=9                                         go on with run 9, which was stopped

Each method is a search with a run of its own. compare.json in this run's folder has every number, compare.md the table.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.adapt.adapt_experiment import SearchFirst, searched
from das_gym.adapt.shrink.compare import Found, Judge, Line, Quality, found_by, markdown, print_comparison, verdict
from das_gym.adapt.shrink.recovery import RecoveryConfig
from das_gym.adapt.shrink_experiment import ShrinkSettings, as_vlm, check, told_to_search

from das_gym.commandline import typed, used
from das_gym.config import build, part_of
from das_gym.experiment import MISTAKES, ProblemSettings, RunError, RunsExperiment, required_folder
from das_gym.files import read_json, write_json, write_text
from das_gym.problem.budget import BudgetSettings
from das_gym.problem.loading import load_problem, shuffled
from das_gym.problem.mask_cost import SAVED
from das_gym.runs import find_run, library_versions

RECORD = "compare.json"
TABLE = "compare.md"

METHODS = ("bayes", "random", "uniform", "block_influence", "angular", "interlace", "leave_one_out", "sleb", "evopress")
"""Ours, what looks at nothing, what needs no search, and what searches, each from its paper; `docs/rivals.md`."""


@dataclass(frozen=True)
class CompareSettings(RecoveryConfig, ProblemSettings, BudgetSettings):
    """The settings of `python -m adapt shrink compare`: of recovery, of model and data, the budget, and these.

    Attributes:
        methods: Agents by name.
        agent_kwargs: Their hyper-parameters, by agent.
        skip_num: Budget: exactly how many layers to delete; None, with no share to save either, is `macs_saved=0.2`.
        evaluations: Masks that a method may score, at least 1; some are done early.
        test_examples: Most test examples that are answered and scored; None = all.
        generate_batch_size: Prompts that are answered at a time.
        searches: Id of the search run by method, for those that were searched before.
    """

    model: str = "VLM"
    task: str = "answering"
    methods: tuple[str, ...] = METHODS
    agent_kwargs: dict[str, dict[str, Any]] = field(default_factory=dict)
    skip_num: int | None = None
    evaluations: int = 120
    test_examples: int | None = 500
    generate_batch_size: int = 8
    searches: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shrink_settings()
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods={list(self.methods)} is not allowed; name one or more agents, each once")
        if self.evaluations < 1:
            raise ValueError(f"evaluations={self.evaluations} is not allowed; use 1 or more")
        for name in (*self.agent_kwargs, *self.searches):
            if name not in self.methods:
                raise ValueError(f"{name!r} is not compared; methods are {', '.join(self.methods)}")

    def shrink_settings(self) -> ShrinkSettings:
        """Those of shrinking the same model, which check themselves."""
        shared = {f.name for f in dataclasses.fields(ShrinkSettings)} & {f.name for f in dataclasses.fields(self)}
        return ShrinkSettings(**{name: getattr(self, name) for name in shared})

    @property
    def budget(self) -> dict[str, Any]:
        """The budget as a search takes it."""
        return self.shrink_settings().budget


class CompareExperiment(RunsExperiment):
    """`python -m adapt shrink compare`.

    Args:
        search_first: Runs a search with settings of `python -m agents`, and returns its run id.
    """

    def __init__(self, search_first: SearchFirst | None = None) -> None:
        super().__init__("adapt shrink compare", save_git_info=False)
        self.search_first = search_first
        self.add_settings(CompareSettings)
        self.main(compare)

    def run(
        self,
        command_name: str | None = None,
        config_updates: Mapping[str, Any] | None = None,
        named_configs: Sequence[str] = (),
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As `RunsExperiment.run`, after a search by every method; all is checked before the first one."""
        given = self.prepared(config_updates, named_configs)
        if command_name in (None, self.default_command) and given.get("resume") is None and self.search_first is not None:
            try:
                settings = build(CompareSettings, given)
                check(settings.shrink_settings())
            except MISTAKES as error:
                raise RunError(str(error)) from error
            given["searches"] = {**settings.searches, **self._search(settings, self.search_first)}
        return super().run(command_name, given, named_configs, *args, **kwargs)

    @staticmethod
    def _search(settings: CompareSettings, search_first: SearchFirst) -> dict[str, int]:
        """Search by every method that has not searched yet; the runs' ids. None profits from what another one scored.

        What comes before the layers that masks are of is computed beforehand, once for all.
        """
        problem = load_problem(settings.problem())
        task = problem.task
        nothing = np.zeros((1, len(problem.layer_names)), dtype=bool)
        problem.evaluator.losses(nothing, shuffled(task, problem.splits.reward, task.reward_examples))
        found = {}
        for method in settings.methods:
            if method not in settings.searches:
                problem.evaluator.forget()
                more = {"agent": method, "evaluations": settings.evaluations}
                more["agent_kwargs"] = settings.agent_kwargs.get(method, {})
                try:
                    found[method] = search_first(told_to_search(settings, more))
                except BaseException:
                    print(way_on({**settings.searches, **found}, method), file=sys.stderr)
                    raise
        return found


def way_on(found: Mapping[str, int], stopped: str) -> str:
    """How to go on after a search that was stopped."""
    words = " ".join(f"searches.{method}={run}" for method, run in found.items())
    done = f"add {words} to the same command: these are not searched again; and " if found else ""
    return (
        f"the search by {stopped} was stopped. To go on, {done}let it end by `{typed('agents', 'resume=<its run>')}` and "
        f"add searches.{stopped}=<its run> (or leave that, and it is searched anew)"
    )


def found_in(settings: CompareSettings, method: str) -> Found:
    """What a method's search found.

    Raises:
        FileNotFoundError: there is no such search, or it is not finished.
        ValueError: it was not searched, or by another agent.
    """
    if method not in settings.searches:
        raise ValueError(f"{method} was not searched: leave searches out, or give the run of every method")
    run = settings.searches[method]
    choice = searched(settings.runs_dir, run, {})
    folder = find_run(settings.runs_dir, run)
    record, log = read_json(folder / "search.json"), read_json(folder / "run.json")
    if record["agent"] != method:
        raise ValueError(f"searches.{method}={run} is a search by {record['agent']}")
    try:
        started, stopped = (datetime.fromisoformat(log[name]) for name in ("start_time", "stop_time"))
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'run.json'} is damaged: it does not say when the search began and ended") from error
    return found_by(method, run, record, choice.mask, (stopped - started).total_seconds())


def compare(_run: Any, _config: Mapping[str, Any], agent_kwargs: Any, searches: Any) -> float:
    """Measure, print and keep; the test loss of the best method before recovery is the result."""
    del agent_kwargs, searches  # named so that Sacred lets them hold keys of their own
    settings = build(CompareSettings, _config)
    folder = required_folder(_run)
    problem = load_problem(settings.problem())
    whole = as_vlm(problem)
    test = shuffled(problem.task, problem.splits.test, settings.test_examples)
    judge = Judge(problem, whole, test, part_of(RecoveryConfig, settings), settings.generate_batch_size)
    full, lines = judge.quality(whole, "full model"), []
    for method in settings.methods:
        lines.append(judge.line(found_in(settings, method)))
        _run.log_scalar(f"{method}.loss", lines[-1].before.loss)
        keep(folder, settings, full, lines)
    title = title_of(settings, len(test))
    write_text(folder / TABLE, markdown(title, full, lines))
    for name in (RECORD, TABLE):
        _run.add_artifact(folder / name)
    print_comparison(title, full, lines)
    print(f"record: {folder / RECORD}, table: {folder / TABLE}")
    return min(line.before.loss for line in lines)


def title_of(settings: CompareSettings, count: int) -> str:
    """What was compared on."""
    name, value = next(iter(settings.budget.items()))
    budget = f"{value} layers" if name == "skip_num" else f"at least {100 * value:g} % of the {SAVED[name]}"
    model = "the bundled model" if settings.checkpoint is None else Path(settings.checkpoint).name
    recovery = "no recovery" if settings.recover == "none" else f"{settings.recover}, {settings.steps} steps"
    return f"{model}, {budget} saved, {recovery}, {count:,} test examples, seed {settings.seed}"


def keep(folder: Path, settings: CompareSettings, full: Quality, lines: Sequence[Line]) -> None:
    """Write `compare.json`, as far as it is known."""
    record = {
        "settings": json.loads(json.dumps({**dataclasses.asdict(settings), "use": used()})),
        "full": dataclasses.asdict(full),
        "methods": [line.record() for line in lines],
        "verdict": verdict(lines),
        "versions": library_versions(),
    }
    write_json(folder / RECORD, record)
