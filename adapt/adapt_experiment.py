"""Fine-tune the configuration that a search found, and set it beside the unskipped model.

python -m adapt                                        searches first, with the bundled model and data
python -m adapt with search_run=3                      the mask, model and data of that search
python -m adapt with mask=[0,1,0,0,0,1,0,0,1,0,0,1]    a mask of one's own
python -m adapt with resume=4                          go on with run 4, which was stopped
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.adapt.evaluate import RANKED_IMAGES, check_rank_images, evaluate
from das_gym.adapt.finetune import FinetuneConfig, finetune, load_subnet
from das_gym.adapt.report import Row, print_table

from das_gym.commandline import typed, use, used
from das_gym.config import build, part_of
from das_gym.data.checks import require_readable
from das_gym.data.splits import Splits
from das_gym.experiment import MISTAKES, ProblemSettings, RunError, RunsExperiment, check_problem, required_folder
from das_gym.files import read_json, write_json
from das_gym.problem.latency import measure_latency
from das_gym.problem.loading import AdaptedModel, ProblemConfig, changed_settings, example_costs, load_splits
from das_gym.registration import ENVIRONMENTS, find_environment
from das_gym.runs import find_run, library_versions
from das_gym.tasks.base import Task

PROBLEM_SETTINGS = tuple(f.name for f in dataclasses.fields(ProblemConfig))
SUBNET_FILE = "adapter.safetensors"
UNSKIPPED_FILE = "unskipped_adapter.safetensors"
RECORD = "adapt.json"


@dataclass(frozen=True)
class AdaptSettings(FinetuneConfig, ProblemSettings):
    """The settings of `python -m adapt`: those of fine-tuning, of model and data (a search run brings its own), and these.

    Attributes:
        search_run: Id of the search run whose mask, model and data to use; None with `mask=None` searches first.
        mask: A mask of one's own: 0 or 1 a layer, 1 = skipped.
        search: Settings of `python -m agents` for the search that comes first where neither a run nor a mask is
            given, as in `search.evaluations=100`.
        rank_images: Most test images that retrieval ranks, with all of their texts; None = all.
    """

    search_run: int | None = None
    mask: tuple[int, ...] | None = None
    search: dict[str, Any] = field(default_factory=dict)
    rank_images: int | None = RANKED_IMAGES

    def __post_init__(self) -> None:
        FinetuneConfig.__post_init__(self)
        ProblemSettings.__post_init__(self)
        check_rank_images(self.rank_images)
        if self.mask is not None and self.search_run is not None:
            raise ValueError(f"both mask and search_run={self.search_run} are given; give one of them")
        if self.mask is not None and not set(self.mask) <= {0, 1}:
            raise ValueError(f"mask={list(self.mask)} holds other values than 0 (keep) and 1 (skip)")

    def finetuning(self) -> FinetuneConfig:
        """The settings of fine-tuning alone."""
        return part_of(FinetuneConfig, self)


class AdaptExperiment(RunsExperiment):
    """Searches before its own run where neither a mask nor a search run is given.

    Attributes:
        search_first: Runs a search with settings of `python -m agents` and returns its run id. The command sets
            it, since this package knows nothing of agents.
    """

    search_first: Callable[[dict[str, Any]], int] | None = None

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
        told = any(given.get(name) is not None for name in ("mask", "search_run", "resume"))
        if self.search_first is not None and command_name in (None, self.default_command) and not told:
            given["search_run"] = self.search_first(_search_settings({**self.named_settings(named_configs), **given}))
        return super().run(command_name, given, named_configs, *args, **kwargs)


def _search_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the search is told of the settings given to `python -m adapt`.

    Raises:
        RunError: a setting that is refused, before anything is searched.
    """
    try:
        settings = build(AdaptSettings, given)
    except MISTAKES as error:
        raise RunError(str(error)) from error
    env_id = find_environment(settings.model, settings.task).id
    own = {name: value for name, value in changed_settings(settings).items() if name not in ("model", "task")}
    return {
        "env_id": env_id,
        "runs_dir": settings.runs_dir,
        "use": settings.use,
        "seed": settings.seed,
        **own,
        **settings.search,
    }


def check(settings: AdaptSettings) -> None:
    """Refuse a search run, a supernet or a device that is not there, before a run begins."""
    if settings.search_run is not None or settings.mask is not None:
        check_problem(chosen(settings)[1])


ex = AdaptExperiment("adapt", save_git_info=False)
ex.add_config(dataclasses.asdict(AdaptSettings()))
ex.add_problems()
ex.check_settings(lambda config: check(build(AdaptSettings, config)))


def chosen(settings: AdaptSettings) -> tuple[np.ndarray, ProblemConfig]:
    """The mask to fine-tune and the model and data it is for.

    Raises:
        FileNotFoundError: no such search run, or one that is not finished.
        ValueError: neither a mask nor a run.
    """
    if settings.mask is not None:
        return np.array(settings.mask, dtype=bool), settings.problem()
    if settings.search_run is None:
        raise ValueError("give search_run=<id> or mask=[...]; `python -m adapt` alone searches first")
    folder = find_run(settings.runs_dir, settings.search_run)
    path = folder / "search.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there: run {settings.search_run} is no search, or one that did not end "
            f"(`{typed('agents', f'resume={settings.search_run}')}` goes on with a search)"
        )
    record = read_json(path)
    use(record.get("use", ()))
    entry = ENVIRONMENTS[record["env_id"]]
    from_search = {"model": entry.model, "task": entry.task}
    from_search |= {name: record["env_kwargs"][name] for name in PROBLEM_SETTINGS if name in record["env_kwargs"]}
    return np.array(record["mask"], dtype=bool), ProblemConfig(**{**from_search, **changed_settings(settings)})


@ex.main
def adapt(_run: Any, _config: Mapping[str, Any], search: Any) -> float:
    """Fine-tune, evaluate and save; the test metric of the subnet is the result."""
    del search  # named so that Sacred lets it hold keys of its own
    settings = build(AdaptSettings, _config)
    mask, problem = chosen(settings)
    folder = required_folder(_run)
    splits = load_splits(problem)
    subnets = {"subnet": load_subnet(problem, splits, mask), "unskipped": load_subnet(problem, splits, np.zeros_like(mask))}
    check_test_images(subnets["subnet"].task, splits)
    for name, subnet in subnets.items():

        def log(metric: str, value: float, step: int, name: str = name) -> None:
            _run.log_scalar(f"{name}.{metric}", value, step)

        finetune(subnet, splits, settings.finetuning(), f"fine-tuning the {name}", folder / f"{name}.pt", log)
    rows = compare(subnets, splits, settings.rank_images)
    _save(folder, settings, problem, subnets, rows, splits.left_out_count)
    for name in (SUBNET_FILE, UNSKIPPED_FILE, RECORD):
        _run.add_artifact(folder / name)
    for row in rows:
        for key in ("macs", "macs_saved", "latency_ms", "trainable_parameters"):
            _run.log_scalar(f"{row.name}.{key}", float(getattr(row, key)))
        for key, value in row.evaluation.numbers.items():
            _run.log_scalar(f"{row.name}.test.{key}", value)
    print_table(rows, f"{len(splits.test):,} test examples of {problem.task}, {problem.data_root or 'bundled data'}")
    print(f"record: {folder / RECORD}, adapters: {folder / SUBNET_FILE}")
    return rows[0].evaluation.metric


def check_test_images(task: Task, splits: Splits[Any]) -> None:
    """Open every image that will be reported on, the first time: a damaged one is named before anything is trained.

    Raises:
        ValueError, FileNotFoundError: names the image.
    """
    require_readable(pair.image for pair in task.pairs(splits.test))


def compare(subnets: Mapping[str, AdaptedModel], splits: Splits[Any], rank_images: int | None = RANKED_IMAGES) -> list[Row]:
    """Evaluate each subnet on the test split and measure it."""
    latencies = measure_latency({name: _one_example(subnet, splits) for name, subnet in subnets.items()})
    return [_row(name, subnet, splits, latencies[name], rank_images) for name, subnet in subnets.items()]


def _one_example(subnet: AdaptedModel, splits: Splits[Any]) -> Any:
    task, vlp = subnet.task, subnet.backbone.vlp
    batch = {name: tensor.to(vlp.device) for name, tensor in task.processor(task.pairs(splits.test[:1])).items()}
    return lambda: subnet.head(task.group_features(vlp(batch)))


def _row(name: str, subnet: AdaptedModel, splits: Splits[Any], latency_ms: float, rank_images: int | None) -> Row:
    vlp = subnet.backbone.vlp
    mask = vlp.check_mask(None)
    costs = example_costs(subnet, splits)
    parameters = [*vlp.parameters(), *subnet.head.parameters()]
    return Row(
        name=name,
        mask=tuple(mask.astype(int).tolist()),
        skipped_layers=tuple(layer.name for layer, skipped in zip(vlp.layers, mask, strict=True) if skipped),
        evaluation=evaluate(subnet, splits.test, f"evaluating the {name}", rank_images=rank_images),
        trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad),
        parameters=sum(p.numel() for p in parameters),
        macs=costs.macs(mask),
        macs_saved=costs.macs_saved(mask),
        latency_ms=latency_ms,
    )


def _save(
    folder: Path,
    settings: AdaptSettings,
    problem: ProblemConfig,
    subnets: Mapping[str, AdaptedModel],
    rows: list[Row],
    left_out: int,
) -> None:
    """Adapters first, the record last: a record means that all is there."""
    info = dataclasses.asdict(settings.finetuning())
    subnets["subnet"].adaptation(**info).save(folder / SUBNET_FILE)
    subnets["unskipped"].adaptation(**info).save(folder / UNSKIPPED_FILE)
    record = {
        "format": "das_gym adapt 1",
        "problem": dataclasses.asdict(problem),
        "settings": json.loads(json.dumps({**dataclasses.asdict(settings), "use": used()})),
        "models": [row.record() for row in rows],
        "left_out": left_out,
        "versions": library_versions(),
    }
    write_json(folder / RECORD, record)
    for name in subnets:
        (folder / f"{name}.pt").unlink(missing_ok=True)
