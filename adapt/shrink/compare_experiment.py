"""Methods of choosing layers side by side, at the same budget, before and after the same recovery.

python -m adapt shrink compare                                                       the bundled model, 20 % of the MACs
python -m adapt shrink compare with recover=none                                     faster: deletion alone
python -m adapt shrink compare with checkpoint=DIR data_root=DIR skip_num=4 'methods=["bayes","greedy","random"]'
python -m adapt shrink compare with resume=9                                         go on with run 9, which was stopped

Each method is a search with a run of its own, begun by this one, which knows them (searches.json in its folder) and goes on
with one that was stopped. compare.json has every number, compare.md the table.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from das_gym.adapt.adapt_experiment import searched
from das_gym.adapt.shrink.card import called
from das_gym.adapt.shrink.checks import as_vlm, asked_budget, check, deletable
from das_gym.adapt.shrink.compare import Found, Judge, Line, Quality, markdown, print_comparison, verdict
from das_gym.adapt.shrink.recovery import RecoveryConfig
from das_gym.adapt.shrink.settings import ShrinkSettings, told_to_search
from das_gym.agents.searching.record import SearchResult, best_rows

from das_gym.commandline import used
from das_gym.config import build, part_of
from das_gym.experiment import RunsExperiment, required_folder
from das_gym.files import damage_named, read_json, write_json, write_text
from das_gym.problem.budget import BudgetSettings
from das_gym.problem.config import ProblemSettings, changed_settings
from das_gym.problem.loading import Problem, load_problem, shuffled
from das_gym.problem.mask_cost import SAVED
from das_gym.progress import progress
from das_gym.runs import find_run, library_versions
from das_gym.wording import counted

RECORD = "compare.json"
TABLE = "compare.md"
SEARCHES = "searches.json"

METHODS = ("bayes", "random", "uniform", "block_influence", "angular", "interlace", "leave_one_out", "greedy", "evopress")
"""Ours, what looks at nothing, what needs no search, and what searches, each from its paper; `docs/rivals.md`."""


Search = Callable[[dict[str, Any], Callable[[int], object]], int]


@dataclass(frozen=True)
class Begun:
    """A search that was begun.

    Attributes:
        run: Its id.
        seconds: That it took before it was stopped.
    """

    run: int
    seconds: float = 0.0


@dataclass(frozen=True)
class CompareSettings(RecoveryConfig, ProblemSettings, BudgetSettings):
    """The settings of `python -m adapt shrink compare`.

    Attributes:
        methods: Agents that choose the layers to delete.
        evaluations: Masks that an agent may score, at least 1.
        agent_kwargs: Hyperparameters by agent, as in `agent_kwargs.METHOD.NAME=VALUE`.
        skip_num: Exactly how many layers to delete. If no budget is given, at least 20 % of the MACs are saved.
        test_examples: Number of test examples to evaluate on, at least 1. None evaluates on all.
        generate_batch_size: Prompts that are answered at a time.
        searches: Ids of searches that ran before, by method, as in `searches.bayes=17`.
    """

    group: ClassVar[str] = "Comparison"

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

    @property
    def begun(self) -> dict[str, Begun]:
        """The searches that were given."""
        return {method: Begun(run) for method, run in self.searches.items()}


class CompareExperiment(RunsExperiment):
    """`python -m adapt shrink compare`.

    Args:
        search: Runs a search with settings of `python -m agents`, calls what it is given with the run's id once it can be
            resumed, and returns the id; None where all were searched before.
        check_method: Refuses the name of no agent, and hyper-parameters that it does not have; None = not looked at.
    """

    def __init__(
        self, search: Search | None = None, check_method: Callable[[str, Mapping[str, Any]], object] | None = None
    ) -> None:
        super().__init__("adapt shrink compare", save_git_info=False)

        def check_settings(settings: CompareSettings) -> None:
            if check_method is not None:
                for method in settings.methods:
                    check_method(method, settings.agent_kwargs.get(method, {}))
            check_all(settings)

        self.add_settings(CompareSettings, check_settings)

        @self.main
        def compare(_run: Any, _config: Mapping[str, Any], agent_kwargs: Any, searches: Any) -> float:
            """Search, measure, print and keep; the test loss of the best method before recovery is the result."""
            del agent_kwargs, searches  # named so that Sacred lets them hold keys of their own
            return compared(_run, build(CompareSettings, _config), search)


def check_all(settings: CompareSettings) -> None:
    """Refuse what can be told before the first search; the model is loaded, and stays so.

    Raises:
        ValueError, FileNotFoundError: the reason.
    """
    check(settings.shrink_settings())
    for method in settings.methods:
        if method in settings.begun:
            check_search(settings, method, settings.searches[method])


def begun_in(folder: Path) -> dict[str, Begun]:
    """The searches that the run in `folder` has begun, by method; not those whose runs are gone, as on a full disk.

    Raises:
        ValueError: its list is damaged.
    """
    path = folder / SEARCHES
    if not path.is_file():
        return {}
    with damage_named(path, "remove it, and all methods search anew"):
        begun = {method: build(Begun, each, "entry") for method, each in read_json(path).items()}
    return {method: each for method, each in begun.items() if (folder.parent / str(each.run) / "run.json").is_file()}


def search_all(settings: CompareSettings, problem: Problem, folder: Path, search: Search) -> None:
    """Have every method search that has not done so; one that was stopped goes on. None profits from another one's scores.

    What comes before the layers that masks are of is computed beforehand, once for all.
    """
    begun = begun_in(folder)
    done = {*settings.searches, *(method for method, each in begun.items() if is_done(settings, each))}
    todo = [method for method in settings.methods if method not in done]
    if not todo:
        return
    nothing = np.zeros((1, len(problem.layer_names)), dtype=bool)
    problem.evaluator.losses(nothing, shuffled(problem.task, problem.splits.reward, problem.task.reward_examples))

    def keep(method: str, seconds: float, run: int) -> None:
        begun[method] = Begun(run, seconds)
        write_json(folder / SEARCHES, {name: dataclasses.asdict(each) for name, each in begun.items()})

    with progress(len(todo), "searches", unit="method") as bar:
        for method in todo:
            problem.evaluator.forget()
            more = {"agent": method, "evaluations": settings.evaluations}
            told = told_to_search(settings, {**more, "agent_kwargs": settings.agent_kwargs.get(method, {})})
            seconds = 0.0
            if method in begun:  # the settings again: they confirm what a resumed run asks to be confirmed
                stopped = begun[method]
                seconds = stopped.seconds + seconds_of(find_run(settings.runs_dir, stopped.run))
                told["resume"] = stopped.run
            search(told, partial(keep, method, seconds))
            bar.update()


def is_done(settings: CompareSettings, begun: Begun) -> bool:
    """Whether a search has ended."""
    return bool(read_json(find_run(settings.runs_dir, begun.run) / "run.json").get("status") == "COMPLETED")


def seconds_of(folder: Path) -> float:
    """How long the run in `folder` took since it was begun or resumed the last time; of a killed one, as far as is known.

    Raises:
        ValueError: it does not say.
    """
    log = read_json(folder / "run.json")
    try:
        ended = log["stop_time"] or log["heartbeat"] or log["start_time"]
        return (datetime.fromisoformat(ended) - datetime.fromisoformat(log["start_time"])).total_seconds()
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'run.json'} is damaged: it does not say when the search began and ended") from error


def check_search(settings: CompareSettings, method: str, run: int) -> None:
    """Refuse a run that is no method's search.

    Raises:
        FileNotFoundError: there is no such search, or it is not finished.
        ValueError: it is a search by another agent, or its record is damaged.
    """
    searched(settings.runs_dir, run, changed_settings(settings))
    agent = read_json(find_run(settings.runs_dir, run) / "search.json")["agent"]
    if agent != method:
        raise ValueError(f"searches.{method}={run} is a search by {agent}")


def found_by(method: str, run: int, record: SearchResult, mask: np.ndarray, seconds: float) -> Found:
    """What the record of a search says of a mask that it scored.

    Args:
        method: The agent.
        run: Id of the search.
        record: Its record.
        mask: (n_layers,) bool, the one that is taken.
        seconds: How long it took.
    """
    taken = tuple(int(bit) for bit in mask)
    rows = [vars(record), record.best_seen, *best_rows(record.history, record.env_kwargs)]
    loss = next(row["loss"] for row in rows if tuple(row["mask"]) == taken)
    return Found(method, run, taken, record.evaluations, seconds, loss)


def compared(_run: Any, settings: CompareSettings, search: Search | None) -> float:
    """Search, measure, print and keep; the test loss of the best method before recovery is the result."""
    folder = required_folder(_run)
    problem = load_problem(settings.problem())
    if search is not None:
        search_all(settings, problem, folder, search)
    runs = {**begun_in(folder), **settings.begun}
    for method in settings.methods:
        if method not in runs:
            raise ValueError(f"{method} was not searched: leave searches out, or give the run of every method")
    settings = dataclasses.replace(settings, searches={method: runs[method].run for method in settings.methods})
    test = shuffled(problem.task, problem.splits.test, settings.test_examples)
    judge = Judge(problem, as_vlm(problem), test, part_of(RecoveryConfig, settings), settings.generate_batch_size, folder)
    full, lines, left_out = measure_all(settings, problem, runs, judge, folder)
    for line in lines:
        _run.log_scalar(f"{line.found.method}.loss", line.before.loss)
    title = title_of(settings, len(test))
    write_text(folder / TABLE, markdown(title, full, lines, left_out))
    for name in (RECORD, TABLE):
        _run.add_artifact(folder / name)
    print_comparison(title, full, lines, left_out)
    print(f"record: {folder / RECORD}, table: {folder / TABLE}")
    return min(line.before.loss for line in lines)


def measure_all(
    settings: CompareSettings, problem: Problem, runs: Mapping[str, Begun], judge: Judge, folder: Path
) -> tuple[Quality, list[Line], dict[str, str]]:
    """The full model's quality, a line for every method, and why methods have none; each is kept as soon as it is known.

    Raises:
        ValueError: no method's mask can be deleted.
    """
    full, lines = measured(folder)
    full = full or judge.quality(judge.whole, "full model")
    for line in lines:
        judge.remember(line)
    left_out: dict[str, str] = {}
    budget, known = asked_budget(settings.shrink_settings(), problem), {line.found.method for line in lines}
    with progress(len(settings.methods), "recovering", unit="method", initial=len(known)) as bar:
        for method in (method for method in settings.methods if method not in known):
            choice = searched(settings.runs_dir, runs[method].run, changed_settings(settings))
            try:
                choice = deletable(choice, problem, budget)
            except ValueError as error:
                left_out[method] = str(error)
                continue
            search, place = runs[method], find_run(settings.runs_dir, runs[method].run)
            seconds = search.seconds + seconds_of(place)
            lines.append(judge.line(found_by(method, search.run, SearchResult.load(place), choice.mask, seconds)))
            keep(folder, settings, full, lines, left_out)
            judge.remember(lines[-1])
            bar.update()
    if not lines:
        raise ValueError(f"no method found a mask that can be deleted: {'; '.join(left_out.values())}")
    keep(folder, settings, full, lines, left_out)
    return full, lines, left_out


def measured(folder: Path) -> tuple[Quality | None, list[Line]]:
    """What this run measured before it was stopped: the full model, and the first methods."""
    path = folder / RECORD
    if not path.is_file():
        return None, []
    record = read_json(path)
    with damage_named(path, "remove it, and all methods are measured anew"):
        return build(Quality, record["full"]), [build(Line, line) for line in record["methods"]]


def title_of(settings: CompareSettings, count: int) -> str:
    """What was compared on."""
    name, value = next(iter(settings.budget.items()))
    budget = counted(value, "layer") if name == "skip_num" else f"at least {100 * value:g} % of the {SAVED[name]}"
    model = "the bundled model" if settings.checkpoint is None else called(Path(settings.checkpoint))
    recovery = "no recovery" if settings.recover == "none" else f"{settings.recover}, {counted(settings.steps, 'step')}"
    return f"{model}, {budget} saved, {recovery}, {count:,} test examples, seed {settings.seed}"


def keep(folder: Path, settings: CompareSettings, full: Quality, lines: Sequence[Line], left_out: Mapping[str, str]) -> None:
    """Write `compare.json`, as far as it is known."""
    record = {
        "settings": json.loads(json.dumps({**dataclasses.asdict(settings), "use": used()})),
        "full": dataclasses.asdict(full),
        "methods": [line.record() for line in lines],
        "left_out": left_out,
        "verdict": verdict(lines),
        "versions": library_versions(),
    }
    write_json(folder / RECORD, record)
