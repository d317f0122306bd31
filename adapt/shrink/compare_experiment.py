"""Compare methods of choosing layers at the same budget, before and after the same recovery.

python -m adapt shrink compare                                                       the bundled model, 20 % of the MACs
python -m adapt shrink compare with recover=none                                     faster: deletion alone
python -m adapt shrink compare with checkpoint=DIR data_root=DIR skip_num=4 'methods=["bayes","greedy","random"]'
python -m adapt shrink compare with 'methods=["bayes","bayes/sublayers"]'            layers, and attention and MLP apart
python -m adapt shrink compare with resume=9                                         continue run 9, which was stopped

Each method is a search in a separate run. Their ids are in searches.json, so that a resumed comparison resumes them.
compare.json has every number, compare.md the table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from das_gym.adapt.card import display_name
from das_gym.adapt.choosing import choice_from_search, search_values
from das_gym.adapt.report import recorded_command
from das_gym.adapt.shrink.checks import as_vlm, check, fallback_if_not_removable, requested_budget
from das_gym.adapt.shrink.compare import MaskEvaluator, MethodResult, comparison_table, verdict
from das_gym.adapt.shrink.measuring import GENERATE_BATCH_SIZE, Quality
from das_gym.adapt.shrink.settings import AnsweringSettings, ShrinkSettings
from das_gym.adapt.training import POSITIVE, check_ranges
from das_gym.agents.ask_tell.base import check_agent_kwargs, check_agent_name
from das_gym.agents.sb3.algorithms import ALGORITHMS
from das_gym.agents.search_experiment import run_search
from das_gym.agents.searching.record import SearchResult, best_rows

from das_gym.config import build
from das_gym.experiment import RecordedCommand, Run, required_folder
from das_gym.files import explain_damage, read_json, write_json, write_text
from das_gym.problem.config import changed_settings
from das_gym.problem.loading import load_problem, shuffled
from das_gym.problem.mask_cost import SAVED
from das_gym.progress import progress
from das_gym.runs import find_run, library_versions
from das_gym.wording import counted

RECORD = "compare.json"
TABLE = "compare.md"
SEARCHES = "searches.json"

METHODS = ("bayes", "random", "uniform", "block_influence", "angular", "interlace", "leave_one_out", "greedy", "evopress")
"""Ours, random search, rules without a search, and searches of other papers, see `docs/comparison.md`."""


APART = "/sublayers"
"""End of a method that skips attention and MLP of each layer separately."""


@dataclass(frozen=True)
class StartedSearch:
    """A search that was started.

    Attributes:
        run: Its id.
        seconds: Duration before it was last resumed.
    """

    run: int
    seconds: float = 0.0


@dataclass(frozen=True)
class CompareSettings(AnsweringSettings):
    """The settings of `python -m adapt shrink compare`.

    Attributes:
        methods: Agents that choose the layers to delete; with `/sublayers` at the end, attentions and MLPs.
        evaluations: Masks that an agent may score, at least 1.
        agent_kwargs: Hyperparameters by agent, as in `agent_kwargs.METHOD.NAME=VALUE`.
    """

    group: ClassVar[str] = "Comparison"

    methods: tuple[str, ...] = METHODS
    evaluations: int = 120
    agent_kwargs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, evaluations=POSITIVE)
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"`methods` must name one or more agents, each once: got {list(self.methods)}.")
        if self.skip_num is not None and len({method.endswith(APART) for method in self.methods}) > 1:
            raise ValueError(f"`skip_num` counts layers and sublayers alike: got {self.skip_num}. Use `macs_saved` instead.")
        for name in self.agent_kwargs:
            if name not in self.methods:
                raise ValueError(f"{name!r} is not among `methods`: {', '.join(self.methods)}.")

    def of_method(self, method: str) -> CompareSettings:
        """Return the settings of one method's units."""
        return dataclasses.replace(self, units="sublayers") if method.endswith(APART) else self

    @property
    def by_units(self) -> dict[str, CompareSettings]:
        """The settings for each kind of units that methods have."""
        return {each.units or "layers": each for each in map(self.of_method, self.methods)}

    @property
    def shrink_settings(self) -> ShrinkSettings:
        """The settings of shrinking the same model."""
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(AnsweringSettings)}
        return ShrinkSettings(**shared)


def prepare(settings: CompareSettings) -> CompareSettings:
    """Check agents, model and data before a run; the model is loaded."""
    for method in settings.methods:
        agent = method.removesuffix(APART)
        check_agent_name(agent)
        if agent not in ALGORITHMS:
            check_agent_kwargs(agent, settings.agent_kwargs.get(method, {}))
    for each in settings.by_units.values():
        check(each.shrink_settings)
    return settings


def compare(settings: CompareSettings, run: Run) -> float:
    """Search, evaluate, print and save; the test loss of the best method before recovery is the result."""
    folder = required_folder(run)
    searches = search_all(settings, folder)
    evaluators: dict[str, MaskEvaluator] = {}
    for units, each in settings.by_units.items():
        problem = load_problem(each.problem_config)
        test = shuffled(problem.task, problem.splits.test, settings.test_examples)
        parts = problem, as_vlm(problem), test, settings.recovery(), GENERATE_BATCH_SIZE, folder, settings.metric
        evaluators[units] = MaskEvaluator(*parts)
    full, results = read_results(folder)
    full = full or evaluators[units].quality(evaluators[units].full, "full model")
    for result in results:
        evaluators[settings.of_method(result.method).units or "layers"].remember(result)
    left_out: dict[str, str] = {}
    todo = [method for method in settings.methods if method not in {result.method for result in results}]
    with progress(len(settings.methods), "recovering", unit="method", initial=len(results)) as bar:
        for method in todo:
            own = settings.of_method(method)
            evaluator = evaluators[own.units or "layers"]
            choice = choice_from_search(settings.runs_dir, searches[method].run, changed_settings(own.problem_config))
            budget = requested_budget(own.shrink_settings, evaluator.problem)
            try:
                choice = fallback_if_not_removable(choice, evaluator.problem, budget)
            except ValueError as error:
                left_out[method] = str(error)
                continue
            results.append(evaluator.evaluate(found_by(settings, method, searches[method], choice.mask)))
            write_results(folder, settings, full, results, left_out)
            evaluator.remember(results[-1])
            bar.update()
    if not results:
        raise ValueError(f"no method found a mask that can be removed: {'; '.join(left_out.values())}")
    write_results(folder, settings, full, results, left_out)
    for result in results:
        run.log_scalar(f"{result.method}.loss", result.before.loss)
    table = comparison_table(title_of(settings, len(test)), full, results, left_out)
    write_text(folder / TABLE, f"# {table.title}\n\n{table.markdown()}\n")
    for name in (RECORD, TABLE):
        run.add_artifact(folder / name)
    table.print(width=130)
    print(f"record: {folder / RECORD}, table: {folder / TABLE}")
    return min(result.before.loss for result in results)


def search_all(settings: CompareSettings, folder: Path) -> dict[str, StartedSearch]:
    """Run the search of every method that lacks one, resume those that were stopped, and return all of them.

    The encoder outputs are computed first, and scores of masks are forgotten before each search, so that no method profits
    from another one's work.
    """
    started, finished = read_searches(folder), set[str]()
    for method, each in started.items():
        if read_json(find_run(settings.runs_dir, each.run) / "run.json").get("status") == "COMPLETED":
            finished.add(method)
    todo = [method for method in settings.methods if method not in finished]
    if not todo:
        return started
    for of_units in settings.by_units.values():
        problem = load_problem(of_units.problem_config)
        nothing = np.zeros((1, len(problem.layer_names)), dtype=bool)
        problem.evaluator.losses(nothing, shuffled(problem.task, problem.splits.reward, problem.task.reward_examples))

    def keep(method: str, seconds: float, run: str) -> None:
        started[method] = StartedSearch(int(run), seconds)
        write_json(folder / SEARCHES, {name: dataclasses.asdict(each) for name, each in started.items()})

    with progress(len(todo), "searches", unit="method") as bar:
        for method in todo:
            own = settings.of_method(method)
            load_problem(own.problem_config).evaluator.forget()
            agent, agent_kwargs = method.removesuffix(APART), settings.agent_kwargs.get(method, {})
            more = {"agent": agent, "evaluations": settings.evaluations, "agent_kwargs": agent_kwargs}
            given, seconds = search_values(own, settings.budget, more), 0.0
            if method in started:  # the other settings are given again, as confirmation of an untrusted run's settings
                stopped = started[method]
                seconds = stopped.seconds + seconds_of(find_run(settings.runs_dir, stopped.run))
                given["resume"] = stopped.run
            run_search(given, on_started=partial(keep, method, seconds))
            bar.update()
    return started


def read_searches(folder: Path) -> dict[str, StartedSearch]:
    """Return the searches that a run has started, by method, without those whose folders were removed."""
    path = folder / SEARCHES
    if not path.is_file():
        return {}
    with explain_damage(path, "remove it, and all methods search again"):
        started = {method: build(StartedSearch, each, "entry") for method, each in read_json(path).items()}
    return {method: each for method, each in started.items() if (folder.parent / str(each.run) / "run.json").is_file()}


def seconds_of(folder: Path) -> float:
    """Return the duration of a run since it was started or last resumed; of a killed run until its last heartbeat."""
    path = folder / "run.json"
    log = read_json(path)
    with explain_damage(path, "search again"):
        ended = log["stop_time"] or log["heartbeat"] or log["start_time"]
        return (datetime.fromisoformat(ended) - datetime.fromisoformat(log["start_time"])).total_seconds()


def found_by(settings: CompareSettings, method: str, search: StartedSearch, mask: np.ndarray) -> MethodResult:
    """Return the recorded result of one mask of a search."""
    place = find_run(settings.runs_dir, search.run)
    record = SearchResult.load(place)
    bits = tuple(int(bit) for bit in mask)
    rows = [vars(record), record.best_seen, *best_rows(record.history, record.env_kwargs)]
    loss = next(row["loss"] for row in rows if tuple(row["mask"]) == bits)
    return MethodResult(method, search.run, bits, record.evaluations, search.seconds + seconds_of(place), loss)


def read_results(folder: Path) -> tuple[Quality | None, list[MethodResult]]:
    """Return the results that an interrupted run has already measured: of the full model, and of the first methods."""
    path = folder / RECORD
    if not path.is_file():
        return None, []
    record = read_json(path)
    with explain_damage(path, "remove it, and all methods are measured again"):
        return build(Quality, record["full"]), [build(MethodResult, each) for each in record["methods"]]


def write_results(
    folder: Path, settings: CompareSettings, full: Quality, results: Sequence[MethodResult], left_out: Mapping[str, str]
) -> None:
    """Write `compare.json`."""
    record = {
        "settings": recorded_command(settings),
        "full": dataclasses.asdict(full),
        "methods": [dataclasses.asdict(result) for result in results],
        "left_out": left_out,
        "verdict": verdict(results),
        "versions": library_versions(),
    }
    write_json(folder / RECORD, record)


def title_of(settings: CompareSettings, count: int) -> str:
    """Return the title of the table."""
    name, value = next(iter(settings.budget.items()))
    budget = counted(value, "layer") if name == "skip_num" else f"at least {100 * value:g} % of the {SAVED[name]}"
    model = "the bundled model" if settings.checkpoint is None else display_name(Path(settings.checkpoint))
    recovery = (
        "no recovery" if settings.recover == "none" else f"{settings.recover}, {counted(settings.train.steps, 'step')}"
    )
    return f"{model}, {budget} saved, {recovery}, {count:,} test examples, seed {settings.seed}"


ex = RecordedCommand("adapt shrink compare", CompareSettings, compare, prepare=prepare)
"""`python -m adapt shrink compare`."""
