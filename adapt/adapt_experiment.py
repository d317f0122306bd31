"""Fine-tune the configuration that a search found, and set it beside the full model with adapters and the baseline.

python -m adapt                                        searches first, with the bundled model and data
python -m adapt with vilt_nlvr2 bandit                 another model and task, another agent
python -m adapt with search_run=3                      the mask, model and data of that search
python -m adapt with search_run=3 refine=8             short trainings of its 8 best masks choose among them
python -m adapt with front=5 point=3                   a point of the front that `python -m agents pareto` found
python -m adapt with mask=[0,1,0,0,0,1,0,0,1,0,0,1]    a mask of one's own
python -m adapt with resume=4                          go on with run 4, which was stopped
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from das_gym.adapt.evaluate import RANKED_IMAGES, check_rank_images
from das_gym.adapt.finetune import FinetuneConfig, cut_subnet, finetune
from das_gym.adapt.recipe import resolve_defaults
from das_gym.adapt.references import load_reference
from das_gym.adapt.refining import Round, candidates, refine, taken
from das_gym.adapt.report import BASELINE, FULL_MODEL, IN_WORDS, SUBNET, compare, print_report, write_answers
from das_gym.adapt.step_loss import check_training
from das_gym.adapt.subnets import RECORD, SUBNET_FILE, save
from das_gym.adapt.training import Log, add_prefix, check_ranges
from das_gym.agents.searching.record import SearchResult, best_rows

from das_gym.commandline import typed, used
from das_gym.config import build, part_of
from das_gym.data.checks import require_readable
from das_gym.data.splits import Splits
from das_gym.drawing.architecture import Architecture
from das_gym.engine.encoder_cache import EncoderCache
from das_gym.experiment import MISTAKES, RunError, RunsExperiment, required_folder
from das_gym.files import read_json
from das_gym.models.adapters import parallel_adapters
from das_gym.problem.budget import BUDGET_SETTINGS, keeps_budget
from das_gym.problem.config import ProblemConfig, ProblemSettings, changed_settings
from das_gym.problem.loading import (
    AdaptedModel,
    check_problem,
    check_prompts,
    load_backbone,
    load_problem,
    load_splits,
    shuffled,
    task_class,
)
from das_gym.processes import is_first, of_first
from das_gym.registration import ENVIRONMENTS, EnvEntry, find_environment
from das_gym.runs import find_run, runs_dir_words
from das_gym.streams import shown
from das_gym.tasks.base import Task
from das_gym.trust import trusted_settings

OF_THE_SEARCH = (*BUDGET_SETTINGS, "agent", "evaluations")
"""Settings of a search, which commands that search first take as `search.NAME`, unless they have one of that name."""

PROBLEM_SETTINGS = tuple(f.name for f in dataclasses.fields(ProblemConfig))
FULL_MODEL_FILE = "full_model_adapter.safetensors"

EVALUATIONS, FEW_LAYERS = 80, 12
"""Masks that `bayes` scores when it searches first, for models of so many layers at most. On every bundled table of 12
layers it finds the best mask with each of 20 seeds, as it does with 240 (`python -m benchmarks.evaluations`)."""

SearchFirst = Callable[[dict[str, Any], Callable[[int], str]], int]
"""Runs a search with settings of `python -m agents` and returns its run id.

The second argument gives the command that continues with a search, from its run id: it is printed after an interrupt.
"""


@dataclass(frozen=True)
class ChoosingSettings:
    """Which mask a command takes: one's own, a search's, or a front's.

    Attributes:
        search_run: Id of the search whose mask, model and data are used. If neither this nor `mask` or `front` is given, a
            search runs first.
        mask: Mask to use, as in [0,1,0,0]: one number per layer, 1 = skipped.
        front: Id of a run of `python -m agents pareto`, whose mask number `point` is used.
        point: Number of a point of `front`, from 0 on.
        search: Settings of the search that runs first, as in `search.evaluations=100`, `search.agent=bandit`.
        refine: Number of the search's best masks to train briefly; the best of them replaces the search's answer. 1 trusts
            the search.
    """

    group: ClassVar[str] = "Layers"

    search_run: int | None = None
    mask: tuple[int, ...] | None = None
    front: int | None = None
    point: int | None = None
    search: dict[str, Any] = field(default_factory=dict)
    refine: int = 1

    def check_chosen(self, one: str = "skip") -> None:
        """Refuse settings that choose a mask twice, or not at all where they begin to, or among one mask or none.

        Args:
            one: What a 1 in a mask means, for the message.

        Raises:
            ValueError: the reason.
        """
        mask, runs = self.mask, {"search_run": self.search_run, "front": self.front}
        given = ["mask"] * (mask is not None) + [f"{name}={run}" for name, run in runs.items() if run is not None]
        if len(given) > 1:
            raise ValueError(f"both {' and '.join(given)} are given; give one of them")
        if self.front is not None and self.point is None:
            raise ValueError(f"front={self.front} needs the number of one of its points: give point=3, say")
        if self.point is not None and (self.front is None or self.point < 0):
            raise ValueError(
                f"point={self.point} is the number, from 0 on, of a point of a front: give it with front=<run id>"
            )
        if mask is not None and not set(mask) <= {0, 1}:
            raise ValueError(f"mask={list(mask)} holds other values than 0 (keep) and 1 ({one})")
        if self.refine < 1:
            raise ValueError(f"refine={self.refine} is not allowed; use 1 or more")
        if self.refine > 1 and (mask is not None or self.front is not None):
            raise ValueError(f"refine={self.refine} chooses among the masks of a search; leave out mask, front and point")


@dataclass(frozen=True)
class AdaptSettings(FinetuneConfig, ProblemSettings, ChoosingSettings):
    """The settings of `python -m adapt`; a search run brings its own model and data.

    Attributes:
        test_examples: Number of test examples to evaluate on, at least 1. None evaluates on all.
        rank_images: Number of test images that retrieval ranks, with all of their texts. None ranks all.
        references: Whether to train and evaluate the full model with adapters and the baseline as well. Each takes as long
            as the subnet, unless the package contains its trained weights, as it does for the default settings. Without
            references, the table has the subnet and the costs of the baseline.
    """

    group: ClassVar[str] = "Evaluation"

    test_examples: int | None = None
    rank_images: int | None = RANKED_IMAGES
    references: bool = True

    def __post_init__(self) -> None:
        FinetuneConfig.__post_init__(self)
        ProblemSettings.__post_init__(self)
        check_rank_images(self.rank_images)
        check_ranges(self, test_examples=(1, math.inf))
        self.check_chosen()

    def finetuning(self) -> FinetuneConfig:
        """The settings of fine-tuning alone."""
        return part_of(FinetuneConfig, self)


@dataclass(frozen=True)
class Choice:
    """What is fine-tuned.

    Attributes:
        mask: (n_layers,) bool, True = skipped.
        problem: The model and data it is for.
        remark: Why it is not the search's answer, where it is not; else empty.
        others: What else the search saw and may answer, (n_layers,) bool each, the best first.
    """

    mask: np.ndarray
    problem: ProblemConfig
    remark: str = ""
    others: tuple[np.ndarray, ...] = ()


def choose(settings: AdaptSettings) -> Choice:
    """The mask to fine-tune, one's own or a search's.

    Raises:
        FileNotFoundError: no such search run, or one that is not finished.
        ValueError: neither a mask nor a run, or a search of an environment that is not registered.
    """
    if settings.mask is not None:
        return Choice(np.array(settings.mask, dtype=bool), settings.problem())
    if settings.front is not None and settings.point is not None:
        return fronted(settings.runs_dir, settings.front, settings.point, changed_settings(settings))
    if settings.search_run is None:
        raise ValueError(f"give search_run=<id> or mask=[...]; `{typed('adapt')}` alone searches first")
    return searched(settings.runs_dir, settings.search_run, changed_settings(settings))


def searched(runs_dir: str, run: int, given: Mapping[str, Any]) -> Choice:
    """What a search found.

    Args:
        runs_dir: Folder of all runs.
        run: Its id.
        given: Fields of `ProblemConfig` that differ from the search's.

    Raises:
        FileNotFoundError: no such search run, or one that is not finished.
        ValueError: a search of an environment that is not registered, or a record that is damaged or asks for more
            than a record may.
    """
    folder = find_run(runs_dir, run)
    path = folder / "search.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there: run {run} is no search, or one that did not end "
            f"(`{typed('agents', f'resume={run}')}` goes on with a search)"
        )
    record = vars(SearchResult.load(path))
    mask, remark = best_mask(record)
    seen = [np.array(row["mask"], dtype=bool) for row in best_rows(record["history"], record["env_kwargs"])]
    others = tuple(other for other in seen if (other != mask).any())
    return Choice(mask, _problem(record, path, run, given), remark, others)


def fronted(runs_dir: str, run: int, point: int, given: Mapping[str, Any]) -> Choice:
    """A point of a front.

    Args:
        runs_dir: Folder of all runs.
        run: Id of the run that found the front.
        point: Its number, from 0 on.
        given: Fields of `ProblemConfig` that differ from the search's.

    Raises:
        FileNotFoundError: no such run, or one that is not finished.
        ValueError: no such point, or a search of an environment that is not registered.
    """
    folder = find_run(runs_dir, run)
    path = folder / "front.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there: run {run} is none of `{typed('agents pareto')}`, or one that did not end "
            f"(`{typed('agents pareto', f'resume={run}')}` goes on with one)"
        )
    record = _front(path)
    points = record["points"]
    if point >= len(points):
        raise ValueError(f"point={point}: the front of run {run} has points 0..{len(points) - 1}; use one of them")
    chosen = points[point]
    remark = (
        f"point {point} of run {run}: {100 * chosen['saved']:.1f} % of the {record['cost']} saved, "
        f"loss {chosen['loss']:.4f}, skips {', '.join(chosen['skipped_layers']) or 'nothing'}"
    )
    return Choice(np.array(chosen["mask"], dtype=bool), _problem(record, path, run, given), remark)


def _front(path: Path) -> dict[str, Any]:
    """The record of a front.

    Raises:
        ValueError: it is damaged.
    """
    record = read_json(path)
    try:
        masks = np.array([point["mask"] for point in record["points"]])
        whole = masks.ndim == 2 and bool(np.isin(masks, (0, 1)).all())
        whole &= all(np.isfinite([point["saved"], point["loss"]]).all() for point in record["points"])
        whole &= all(isinstance(name, str) for point in record["points"] for name in point["skipped_layers"])
        whole &= isinstance(record["env_id"], str) and isinstance(record["env_kwargs"], dict)
    except (KeyError, TypeError, ValueError, ArithmeticError):
        whole = False
    if not whole:
        raise ValueError(f"{path} is damaged, or no front of `{typed('agents pareto')}`: run that again")
    return dict(record)


def _problem(record: Mapping[str, Any], path: Path, run: int, given: Mapping[str, Any]) -> ProblemConfig:
    """Model and data of the record of a search, but for what is given."""
    brought = record["env_kwargs"]
    untyped = {name: value for name, value in brought.items() if name in PROBLEM_SETTINGS and name not in given}
    trusted = trusted_settings(path, record.get("use", ()), untyped)
    entry = _environment(record["env_id"], run)
    return build(ProblemConfig, {"model": entry.model, "task": entry.task, **trusted, **given})


def _environment(env_id: str, run: int) -> EnvEntry:
    for entry in ENVIRONMENTS.values():
        if env_id in (entry.id, entry.tabular_id):
            return entry
    raise ValueError(
        f"run {run} searched {env_id}, which is not registered here: load the module that registers its model and task "
        "(use=<module>, as the search did), or give mask=[...] with model= and task="
    )


def best_mask(record: Mapping[str, Any]) -> tuple[np.ndarray, str]:
    """The mask of a search's record: the agent's answer, or what it saw if that has the higher reward and keeps the budget.

    Args:
        record: The content of `search.json`.

    Returns:
        (n_layers,) bool, and a line that says so where it is not the answer; else an empty text.
    """
    seen, budget = record["best_seen"], record["env_kwargs"]
    answer, best = (-np.inf if row["reward"] is None else row["reward"] for row in (record, seen))
    keeps = keeps_budget(budget, seen["mask"], seen["macs_saved"])
    same_examples = budget.get("reward_batches", "fixed") == "fixed"
    if not (best > answer and keeps and same_examples):
        return np.array(record["mask"], dtype=bool), ""
    remark = (
        f"{record['agent']}'s answer has the reward {answer:.4f}; a mask that its search saw has {best:.4f} "
        f"and is taken instead: skip {', '.join(seen['skipped_layers']) or 'nothing'}"
    )
    return np.array(seen["mask"], dtype=bool), remark


class SearchingExperiment(RunsExperiment):
    """An experiment that searches before its own run where neither a mask nor a search run is given."""

    search_first: SearchFirst | None = None

    def search_with(self, search_first: SearchFirst | None, agents: Callable[[], Mapping[str, Mapping[str, Any]]]) -> None:
        """Say how to search.

        Args:
            search_first: Runs the search, since this package knows nothing of agents; None = none is run.
            agents: Gives the names of agents, each with the settings of `python -m agents` that it stands for.
        """
        self.search_first = search_first
        self.add_problems()
        self.add_named_configs(lambda: {name: {"search": dict(search)} for name, search in agents().items()})

    def search_settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What the search is told of the settings given to this command.

        Raises:
            RunError: a setting that is refused, before anything is searched.
        """
        return _search_settings(given)

    def check_first(self, given: Mapping[str, Any]) -> None:
        """Raise for whatever can be told before a search or a run begins, however long it takes to find out.

        Raises:
            ValueError, TypeError, FileNotFoundError: the reason.
        """

    def run(
        self,
        command_name: str | None = None,
        config_updates: Mapping[str, Any] | None = None,
        named_configs: Sequence[str] = (),
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """As `RunsExperiment.run`, after a search if one is needed."""
        given = self.prepared(config_updates, named_configs)
        known = {f.name for f in dataclasses.fields(self.settings)} if self.settings is not None else set()
        for name in OF_THE_SEARCH:
            if name in given and name not in known:
                raise RunError(f"unknown setting {name!r}; the search's is 'search.{name}'")
        whole: dict[str, Any] = {"search": {}}
        for part in (*self.named_parts(named_configs), given):
            whole |= {**part, "search": {**whole["search"], **part.get("search", {})}}
        begins = command_name in (None, self.default_command) and whole.get("resume") is None
        chosen = any(whole.get(name) is not None for name in ("mask", "search_run", "front"))
        if begins:
            try:
                self.check_first(whole)
            except MISTAKES as error:
                raise RunError(str(error)) from error
        if self.search_first is not None and begins and not chosen:
            rest = {name: value for name, value in given.items() if name != "search"}
            then = lambda run: self.command_with(named_configs, {**rest, "search_run": run})  # noqa: E731
            given["search_run"] = of_first(partial(self.search_first, self.search_settings(whole), then))
        return super().run(command_name, given, named_configs, *args, **kwargs)


class AdaptExperiment(SearchingExperiment):
    """`python -m adapt`.

    Args:
        search_first: As for `SearchingExperiment.search_with`.
        agents: Likewise.
    """

    def __init__(
        self, search_first: SearchFirst | None = None, agents: Callable[[], Mapping[str, Mapping[str, Any]]] = dict
    ) -> None:
        super().__init__("adapt", save_git_info=False)
        self.add_settings(AdaptSettings, _check)
        self.search_with(search_first, agents)
        self.main(adapt)

    def check_first(self, given: Mapping[str, Any]) -> None:
        """Ask whether it can train, and open the test pictures, before a search; the problem is loaded, and stays so.

        Raises:
            ValueError, TypeError, FileNotFoundError: a picture is damaged, or a setting is refused.
        """
        settings = build(AdaptSettings, given)
        if settings.mask is None and settings.search_run is None and settings.front is None:
            problem = load_problem(settings.problem())
            check_training(problem.backbone, problem.task, settings, settings.itm_weight)
            check_test_images(problem.task, problem.splits.test)


def _search_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the search is told of the settings given to `python -m adapt`.

    Raises:
        RunError: a setting that is refused, before anything is searched.
    """
    try:
        settings = build(AdaptSettings, given)
    except MISTAKES as error:
        raise RunError(str(error)) from error
    told = {**told_to_any_search(settings), **settings.search}
    if told.get("agent", "bayes") == "bayes" and len(load_problem(settings.problem()).layer_names) <= FEW_LAYERS:
        told.setdefault("evaluations", EVALUATIONS)
    return told


def told_to_any_search(settings: Any) -> dict[str, Any]:
    """Environment, agent, and what a command's settings share with those of a search.

    Args:
        settings: A `ProblemSettings` with `runs_dir`, `use` and `seed`.
    """
    env_id = find_environment(settings.model, settings.task).id
    own = {name: value for name, value in changed_settings(settings).items() if name not in ("model", "task")}
    plain = {name: getattr(settings, name) for name in ("runs_dir", "use", "seed")}
    return {"env_id": env_id, **plain, **own}


def _check(settings: AdaptSettings) -> None:
    """Load the model, and refuse a mask that is not of it, and what cannot train."""
    choice = choose(settings)
    check_problem(choice.problem)
    backbone = load_backbone(choice.problem)
    backbone.vlp.check_mask(choice.mask)
    check_training(backbone, task_class(choice.problem.task)(backbone.processor), settings, settings.itm_weight)
    check_prompts(backbone, choice.problem)


def adapt(_run: Any, _config: Mapping[str, Any], search: Any) -> float:
    """Fine-tune, evaluate and save; the test metric of the subnet is the result."""
    del search  # named so that Sacred lets it hold keys of its own
    settings = build(AdaptSettings, _config)
    choice = choose(settings)
    if choice.remark:
        print(shown(choice.remark))
    problem = choice.problem
    folder = required_folder(_run)
    splits = load_splits(problem)
    nothing = np.zeros_like(choice.mask)
    baseline = cut_subnet(problem, splits, nothing, adapters=False)
    if settings.test_examples is not None:
        splits = dataclasses.replace(splits, test=shuffled(baseline.task, splits.test, settings.test_examples))
    check_test_images(baseline.task, splits.test)
    mask, rounds = refined(choice, splits, settings, folder)
    models = {SUBNET: cut_subnet(problem, splits, mask)}
    if settings.references and parallel_adapters(models[SUBNET].backbone.vlp):  # else the full model is the baseline
        models[FULL_MODEL] = cut_subnet(problem, splits, nothing)
    models[BASELINE] = baseline
    config, told = resolve_defaults(settings.finetuning(), models[SUBNET])
    print(told)
    untrained = () if settings.references else (BASELINE,)
    trained = {name: model for name, model in models.items() if name not in untrained}
    shipped = train(trained, problem, splits, config, folder, _run.log_scalar)
    if not is_first():
        return 0.0
    rows = compare(models, splits, settings.rank_images, untrained, shipped)
    info = dataclasses.asdict(config)
    if FULL_MODEL in models:
        models[FULL_MODEL].adaptation(**info).save(folder / FULL_MODEL_FILE)
    record = {
        "settings": json.loads(json.dumps({**dataclasses.asdict(settings), "use": used()})),
        "models": [row.record() for row in rows.values()],
        "left_out": splits.left_out_count,
        "refined": [dataclasses.asdict(each) for each in rounds],
        "units": Architecture.of_layers(models[SUBNET].backbone.vlp.layers).record(),
    }
    write_answers(folder, rows, models[SUBNET].task, splits.test)
    save(models[SUBNET], folder, info, record)  # the record last: it means that all is there
    for name in models:
        (folder / f"{name}.pt").unlink(missing_ok=True)
    for name in (SUBNET_FILE, *([FULL_MODEL_FILE] if FULL_MODEL in models else []), RECORD):
        _run.add_artifact(folder / name)
    for row in rows.values():
        for key, value in row.scalars().items():
            _run.log_scalar(f"{row.name}.{key}", value)
    print_report(rows, f"{len(splits.test):,} test examples of {problem.task}, {problem.data_root or 'bundled data'}")
    print(f"record: {folder / RECORD}, adapters: {folder / SUBNET_FILE}")
    print(f"Next: {typed('adapt export', f'run={folder.name}', 'out=DIR', runs_dir_words(folder))}")
    return rows[SUBNET].metric


def train(
    models: Mapping[str, AdaptedModel],
    problem: ProblemConfig,
    splits: Splits[Any],
    config: FinetuneConfig,
    folder: Path,
    log: Log,
) -> list[str]:
    """Fine-tune models in place, from encoder outputs that are computed once for all of them.

    Returns:
        The names of those whose trained weights came with das_gym.
    """
    first = next(iter(models.values()))
    encoder = EncoderCache(first.backbone.vlp, first.task.processor, int(config.encoder_cache_gib * 2**30))
    shipped = []
    for name, model in models.items():
        if name != SUBNET and load_reference(model, problem, config, name):
            shipped.append(name)
            continue
        title, checkpoint = f"fine-tuning, {IN_WORDS[name]}", folder / f"{name}.pt"
        finetune(model, splits, config, title, checkpoint, add_prefix(name, log), name == SUBNET, encoder)
    return shipped


def refined(choice: Choice, splits: Splits[Any], settings: AdaptSettings, folder: Path) -> tuple[np.ndarray, list[Round]]:
    """The mask to fine-tune, where several of a search's are to be tried; and what they came to."""
    masks = candidates(choice.mask, choice.others, settings.refine)
    if len(masks) < 2:
        return choice.mask, []
    rounds = refine(choice.problem, splits, masks, settings.finetuning(), folder)
    return taken(rounds, masks), rounds


def check_test_images(task: Task, test: Sequence[Any]) -> None:
    """Open every image that will be reported on, the first time: a damaged one is named before anything is trained.

    Raises:
        ValueError, FileNotFoundError: names the image.
    """
    require_readable(image for pair in task.pairs(test) for image in pair.images)
