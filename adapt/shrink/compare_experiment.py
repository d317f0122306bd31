"""Compare methods of choosing layers at the same budget, before and after the same recovery.

python -m adapt shrink compare                                                       the bundled model, 20 % of the MACs
python -m adapt shrink compare with recover=none                                     faster: deletion alone
python -m adapt shrink compare with checkpoint=DIR data_root=DIR skip_num=4 'methods=["bayes","greedy","random"]'
python -m adapt shrink compare with units=sublayers                                  attention and MLP apart
python -m adapt shrink compare with resume=9                                         continue run 9, which was stopped

Each method searches in its own folder in this run's folder, `bayes/search.json` and so on; a resumed comparison continues
there. compare.json has every number, compare.md the table.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from das_gym.adapt.card import display_name
from das_gym.adapt.choosing import choice_of, search_config, search_first
from das_gym.adapt.report import recorded_command
from das_gym.adapt.shrink.checks import as_vlm, check_config, check_loaded, fallback_if_not_removable
from das_gym.adapt.shrink.measuring import Quality, score_model
from das_gym.adapt.shrink.memory import cached_values
from das_gym.adapt.shrink.recovery import Teacher, make_teacher, recover, temporarily_merged
from das_gym.adapt.shrink.repairing import repaired_copy
from das_gym.adapt.shrink.settings import AnsweringSettings, ShrinkSettings
from das_gym.agents.ask_tell.base import check_agent_name
from das_gym.agents.searching.record import RECORD as SEARCHED
from das_gym.agents.searching.record import SearchResult, best_rows

from das_gym.commands.progress import progress
from das_gym.commands.recorded import RecordedCommand, Run, required_folder
from das_gym.commands.runs import library_versions
from das_gym.commands.settings import PositiveInt, build
from das_gym.drawing.table import Table
from das_gym.files import explain_damage, read_json, write_json, write_text
from das_gym.models.transformers.layer_removal import draw_mask, pruned_copy
from das_gym.problem.loading import Problem, load_problem, shuffled
from das_gym.problem.mask_cost import SAVED
from das_gym.processes import world_size
from das_gym.text import counted

RECORD = "compare.json"
TABLE = "compare.md"
SECONDS = "seconds.json"
"""How long a search took, in its folder; missing if it was interrupted."""

METHODS = ("bayes", "random", "uniform", "block_influence", "angular", "interlace", "leave_one_out", "greedy", "evopress")
"""Ours, random search, rules without a search, and searches of other papers, see `docs/comparison.md`."""


@dataclass(frozen=True)
class MethodResult:
    """One method of the comparison.

    Attributes:
        mask: 0 or 1 per layer, 1 = removed.
        evaluations: Number of masks scored, in units of all reward examples.
        seconds: Of the search, including the layer statistics that every environment measures first. None if it was
            interrupted.
        reward_loss: The mask's loss on the reward split, nats.
        macs_saved, kv_saved: Share of the full model's MACs, and of its bytes of keys and values per token.
        before, after: Quality after removal alone, and after recovery.
    """

    method: str
    mask: tuple[int, ...]
    evaluations: int
    seconds: float | None
    reward_loss: float | None
    macs_saved: float
    kv_saved: float
    drawn: str
    before: Quality
    after: Quality | None = None
    recovery_seconds: float | None = None


@dataclass(frozen=True)
class CompareSettings(AnsweringSettings):
    """The settings of `python -m adapt shrink compare`.

    Attributes:
        methods: Agents that choose the layers to delete.
        evaluations: Masks that an agent may score, at least 1.
    """

    group: ClassVar[str] = "Comparison"

    methods: tuple[str, ...] = METHODS
    evaluations: PositiveInt = 120

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.methods or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"`methods` must name one or more agents, each once: got {list(self.methods)}.")

    @property
    def shrink_settings(self) -> ShrinkSettings:
        """The settings of shrinking the same model."""
        shared = {field.name: getattr(self, field.name) for field in fields(AnsweringSettings)}
        return ShrinkSettings(**shared)


def check(settings: CompareSettings) -> None:
    """Check the names of the agents, and that this is the only process."""
    if world_size() > 1:
        raise ValueError("`adapt shrink compare` trains in one process: start it without `accelerate launch`.")
    for method in settings.methods:
        check_agent_name(method)


def compare(settings: CompareSettings, run: Run) -> float:
    """Search, measure, print and save; the test loss of the best method before recovery is the result."""
    check_config(settings.shrink_settings, settings.problem)
    problem = load_problem(settings.problem)
    recovery = settings.recovery()
    check_loaded(settings.shrink_settings, problem, None)
    folder = required_folder(run)
    searches = search_all(settings, problem, run, folder)
    full, task = as_vlm(problem), problem.task
    test = shuffled(task, problem.splits.test, settings.test_examples)
    quality, results = read_results(folder)
    quality = quality or score_model(full, task, test, "full model", settings.metric)[0]
    measured = {result.method for result in results}
    left_out = dict[str, str]()
    teacher = None if measured == set(settings.methods) else make_teacher(full, task, problem.splits.train, recovery)
    with progress(len(settings.methods), "recovering", unit="method", initial=len(results)) as bar:
        for method in settings.methods:
            checkpoint = folder / f"{method}.pt"
            if method not in measured:
                searched = searches[method]
                try:
                    mask = fallback_if_not_removable(choice_of(searched, settings.problem), problem).mask
                except ValueError as error:
                    left_out[method] = str(error)
                    continue
                found = found_by(method, searched, mask, seconds_of(folder / method))
                # Methods often find the same mask, and recovery takes longest: each mask is measured once.
                known = next((asdict(result) for result in results if result.mask == found["mask"]), None)
                measurements = known or measure_mask(mask, method, problem, test, settings, teacher, checkpoint)
                results.append(build(MethodResult, {**measurements, **found}))
                write_results(folder, settings, quality, results, left_out)
                bar.update()
            checkpoint.unlink(missing_ok=True)
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


def search_all(settings: CompareSettings, problem: Problem, run: Run, folder: Path) -> dict[str, SearchResult]:
    """Return the result of every method's search, in its folder within the run's; those that ended are not repeated.

    The encoder outputs are computed first, and scores of masks are forgotten before each search, so that no method profits
    from another one's work.
    """
    todo = [method for method in settings.methods if not (folder / method / SEARCHED).is_file()]
    if todo:
        nothing = np.zeros((1, len(problem.layer_names)), dtype=bool)
        problem.evaluator.losses(nothing, shuffled(problem.task, problem.splits.reward, problem.task.reward_examples))
    results = {}
    with progress(len(settings.methods), "searches", unit="method") as bar:
        for method in settings.methods:
            problem.evaluator.forget()  # else a method would find the scores of those before it
            config = search_config(settings, settings.budget, {"agent": method, "evaluations": settings.evaluations})
            place = folder / method
            is_new = not place.is_dir()
            start = time.perf_counter()
            results[method] = search_first(config, run, place, settings.resume is not None, problem, f"{method}.")
            if is_new:
                write_json(place / SECONDS, {"seconds": time.perf_counter() - start})
            bar.update()
    return results


def seconds_of(folder: Path) -> float | None:
    """Return how long the search in a folder took; None if it was interrupted."""
    path = folder / SECONDS
    if not path.is_file():
        return None
    with explain_damage(path, "remove it"):
        return float(read_json(path)["seconds"])


def found_by(method: str, search: SearchResult, mask: np.ndarray, seconds: float | None) -> dict[str, Any]:
    """Return the fields of a `MethodResult` that its search determines."""
    bits = tuple(mask.astype(int).tolist())
    rows = [vars(search), search.best_seen, *best_rows(search.history, search.env_kwargs)]
    loss = next(row["loss"] for row in rows if tuple(row["mask"]) == bits)
    about = {"method": method, "mask": bits, "reward_loss": loss}
    return {**about, "evaluations": search.evaluations, "seconds": seconds}


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
        "full": asdict(full),
        "methods": [asdict(result) for result in results],
        "left_out": left_out,
        "versions": library_versions(),
    }
    write_json(folder / RECORD, record)


def title_of(settings: CompareSettings, count: int) -> str:
    """Return the title of the table."""
    name, value = next(iter(settings.budget.items()))
    budget = counted(value, "layer") if name == "skip_num" else f"at least {100 * value:g} % of the {SAVED[name]}"
    model = "the bundled model" if settings.problem.checkpoint is None else display_name(Path(settings.problem.checkpoint))
    recovery = "no recovery" if settings.recover == "none" else settings.recover
    if settings.recovery().method is not None:
        recovery += f", {counted(settings.train.steps, 'step')}"
    return f"{model}, {budget} saved, {recovery}, {count:,} test examples, seed {settings.seed}"


def measure_mask(
    mask: np.ndarray,
    name: str,
    problem: Problem,
    test: Sequence[Any],
    settings: CompareSettings,
    teacher: Teacher | None,
    checkpoint: Path,
) -> dict[str, Any]:
    """Return the fields of a `MethodResult` about the model without the layers of a mask, before and after recovery."""
    task, full, config = problem.task, as_vlm(problem), settings.recovery()
    smaller = pruned_copy(full, mask)
    prompt = next(iter(task.pairs(task.open_ended(problem.splits.test[:1]))))
    cached, cached_of_full = (cached_values(vlm, task.processor, prompt) for vlm in (smaller, full))
    found = {
        "macs_saved": float(problem.costs.macs_saved(mask)),
        "kv_saved": 1 - cached / max(cached_of_full, 1),
        "drawn": draw_mask(full, mask),
        "before": asdict(score_model(smaller, task, test, name, settings.metric)[0]),
    }
    if config.recover == "none":
        return found
    started = time.perf_counter()
    smaller = repaired_copy(problem, mask, config)
    trained = recover(smaller, full, task, problem.splits.train, config, checkpoint, teacher)
    with temporarily_merged(smaller, full, config, trained, checkpoint.parent):
        after = score_model(smaller, task, test, f"{name}, recovered", settings.metric)[0]
    return {**found, "after": asdict(after), "recovery_seconds": time.perf_counter() - started}


def comparison_table(title: str, full: Quality, results: Sequence[MethodResult], left_out: Mapping[str, str]) -> Table:
    """Return the table: the full model first, then methods by test loss before recovery."""
    recovers = any(result.after is not None for result in results)
    columns = ["method", "evaluations", "seconds", "MACs saved", "KV saved", "loss seen", "loss", "score (95 %)"]
    columns += ["recovered loss", "recovered score (95 %)"] if recovers else []

    def quality(value: Quality | None) -> list[str]:
        if value is None:
            return ["-", "-"]
        return [f"{value.loss:.4f}", f"{100 * value.score:.1f} ({100 * value.low:.1f}..{100 * value.high:.1f})"]

    rows = [["full model", "-", "-", "-", "-", "-", *quality(full), *(["-", "-"] if recovers else []), ""]]
    for result in sorted(results, key=lambda result: result.before.loss):
        seen = "-" if result.reward_loss is None else f"{result.reward_loss:.4f}"
        saved = [f"{100 * share:.1f} %" for share in (result.macs_saved, result.kv_saved)]
        seconds = "-" if result.seconds is None else f"{result.seconds:.1f}"
        row = [result.method, str(result.evaluations), seconds, *saved, seen, *quality(result.before)]
        rows.append([*row, *(quality(result.after) if recovers else []), result.drawn])
    notes = [f"{method} has no result: {reason}" for method, reason in left_out.items()]
    return Table((*columns, "layers"), tuple(map(tuple, rows)), title, tuple(notes), text_columns=(0, -1))


ex = RecordedCommand("adapt shrink compare", CompareSettings, compare, check=check)
"""`python -m adapt shrink compare`."""
