"""Compare methods of choosing layers at the same budget, before and after the same recovery.

python -m adapt shrink compare                                                       the bundled model, 20 % of the MACs
python -m adapt shrink compare with recover=none                                     faster: deletion alone
python -m adapt shrink compare with checkpoint=DIR data_root=DIR skip_num=4 'methods=["bayes","greedy","random"]'
python -m adapt shrink compare with units=sublayers                                  attention and MLP apart
python -m adapt shrink compare with resume=9                                         continue run 9, which was stopped

Each method is a search in a separate run. Their ids are in searches.json, so that a resumed comparison resumes them.
compare.json has every number, compare.md the table.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from das_gym.adapt.card import display_name
from das_gym.adapt.choosing import choice_from_run, search_values
from das_gym.adapt.report import recorded_command
from das_gym.adapt.shrink.checks import as_vlm, check, fallback_if_not_removable, requested_budget
from das_gym.adapt.shrink.compare import MethodResult, comparison_table, measure_mask
from das_gym.adapt.shrink.measuring import Quality, score_model
from das_gym.adapt.shrink.recovery import make_teacher
from das_gym.adapt.shrink.settings import AnsweringSettings, ShrinkSettings
from das_gym.adapt.training import POSITIVE, check_ranges
from das_gym.agents.ask_tell.base import check_agent_name
from das_gym.agents.search_experiment import run_search
from das_gym.agents.searching.record import RECORD as SEARCH_RECORD
from das_gym.agents.searching.record import SearchResult, best_rows

from das_gym.config import build
from das_gym.experiment import RecordedCommand, Run, required_folder
from das_gym.files import explain_damage, read_json, write_json, write_text
from das_gym.output import counted
from das_gym.problem.config import changed_settings
from das_gym.problem.loading import Problem, load_problem, shuffled
from das_gym.problem.mask_cost import SAVED
from das_gym.progress import progress
from das_gym.runs import find_run, library_versions

RECORD = "compare.json"
TABLE = "compare.md"
SEARCHES = "searches.json"

METHODS = ("bayes", "random", "uniform", "block_influence", "angular", "interlace", "leave_one_out", "greedy", "evopress")
"""Ours, random search, rules without a search, and searches of other papers, see `docs/comparison.md`."""


@dataclass(frozen=True)
class StartedSearch:
    """A search that was started.

    Attributes:
        run: Its id.
        seconds: Its duration; None while it runs, and if it was interrupted.
    """

    run: int
    seconds: float | None = None


@dataclass(frozen=True)
class CompareSettings(AnsweringSettings):
    """The settings of `python -m adapt shrink compare`.

    Attributes:
        methods: Agents that choose the layers to delete.
        evaluations: Masks that an agent may score, at least 1.
    """

    group: ClassVar[str] = "Comparison"

    methods: tuple[str, ...] = METHODS
    evaluations: int = 120

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, evaluations=POSITIVE)
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"`methods` must name one or more agents, each once: got {list(self.methods)}.")

    @property
    def shrink_settings(self) -> ShrinkSettings:
        """The settings of shrinking the same model."""
        shared = {field.name: getattr(self, field.name) for field in dataclasses.fields(AnsweringSettings)}
        return ShrinkSettings(**shared)


def prepare(settings: CompareSettings) -> CompareSettings:
    """Check agents, model and data before a run; the model is loaded."""
    for method in settings.methods:
        check_agent_name(method)
    check(settings.shrink_settings)
    return settings


def compare(settings: CompareSettings, run: Run) -> float:
    """Search, measure, print and save; the test loss of the best method before recovery is the result."""
    folder, problem, recovery = required_folder(run), load_problem(settings.problem_config), settings.recovery()
    searches = search_all(settings, problem, folder)
    full, task = as_vlm(problem), problem.task
    test = shuffled(task, problem.splits.test, settings.test_examples)
    quality, results = read_results(folder)
    quality = quality or score_model(full, task, test, "full model", settings.metric)[0]
    measured = {result.method for result in results}
    budget, left_out = requested_budget(settings.shrink_settings, problem), dict[str, str]()
    teacher = None if measured == set(settings.methods) else make_teacher(full, task, problem.splits.train, recovery)
    with progress(len(settings.methods), "recovering", unit="method", initial=len(results)) as bar:
        for method in settings.methods:
            checkpoint = folder / f"{method}.pt"
            if method in measured:
                checkpoint.unlink(missing_ok=True)
                continue
            choice = choice_from_run(settings.runs_dir, searches[method].run, changed_settings(settings.problem_config))
            try:
                choice = fallback_if_not_removable(choice, problem, budget)
            except ValueError as error:
                left_out[method] = str(error)
                continue
            found = found_by(settings, method, searches[method], choice.mask)
            known = next((result for result in results if result.mask == found.mask), None)
            if known is None:
                found = measure_mask(found, problem, full, test, recovery, teacher, checkpoint, settings.metric)
            results.append(found if known is None else found.measured_as(known))
            write_results(folder, settings, quality, results, left_out)
            checkpoint.unlink(missing_ok=True)
            bar.update()
    if not results:
        raise ValueError(f"no method found a mask that can be removed: {'; '.join(left_out.values())}")
    write_results(folder, settings, quality, results, left_out)
    for result in results:
        run.log_scalar(f"{result.method}.loss", result.before.loss)
    run.add_artifact(folder / RECORD)
    table = comparison_table(title_of(settings, len(test)), quality, results, left_out)
    write_text(folder / TABLE, f"# {table.title}\n\n{table.markdown()}\n")
    run.add_artifact(folder / TABLE)
    table.print(width=130)
    print(f"record: {folder / RECORD}, table: {folder / TABLE}")
    return min(result.before.loss for result in results)


def search_all(settings: CompareSettings, problem: Problem, folder: Path) -> dict[str, StartedSearch]:
    """Run the search of every method that lacks one, resume those that were stopped, and return all of them.

    The encoder outputs are computed first, and scores of masks are forgotten before each search, so that no method profits
    from another one's work.
    """
    started = read_searches(folder)
    finished = [name for name, each in started.items() if (folder.parent / str(each.run) / SEARCH_RECORD).is_file()]
    todo = [method for method in settings.methods if method not in finished]
    if todo:
        nothing = np.zeros((1, len(problem.layer_names)), dtype=bool)
        problem.evaluator.losses(nothing, shuffled(problem.task, problem.splits.reward, problem.task.reward_examples))

    def keep(method: str, run: str, seconds: float | None = None) -> None:
        started[method] = StartedSearch(int(run), seconds)
        write_json(folder / SEARCHES, {name: dataclasses.asdict(each) for name, each in started.items()})

    with progress(len(todo), "searches", unit="method") as bar:
        for method in todo:
            problem.evaluator.forget()  # else a method would find the scores of those before it
            given = search_values(settings, settings.budget, {"agent": method, "evaluations": settings.evaluations})
            if method in started:  # the other settings are given again, as confirmation of an untrusted run's settings
                run_search({**given, "resume": started[method].run})
            else:
                begun = time.perf_counter()
                run = run_search(given, on_started=partial(keep, method))[0]
                keep(method, run, time.perf_counter() - begun)
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


def found_by(settings: CompareSettings, method: str, search: StartedSearch, mask: np.ndarray) -> MethodResult:
    """Return the recorded result of one mask of a search."""
    record = SearchResult.load(find_run(settings.runs_dir, search.run))
    bits = tuple(int(bit) for bit in mask)
    rows = [vars(record), record.best_seen, *best_rows(record.history, record.env_kwargs)]
    loss = next(row["loss"] for row in rows if tuple(row["mask"]) == bits)
    return MethodResult(method, search.run, bits, record.evaluations, search.seconds, loss)


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
