"""Fine-tune the subnet that a search found, and compare it with the full model with adapters and the baseline.

python -m adapt                                        searches first, with the bundled model and data
python -m adapt with vilt_nlvr2 bandit                 another model and task, another agent
python -m adapt with train.steps=1000                  longer fine-tuning
python -m adapt with search_run=3                      the mask, model and data of that search
python -m adapt with search_run=5 point=3              a point of the front that `python -m agents pareto` found
python -m adapt with mask=[0,1,0,0,0,1,0,0,1,0,0,1]    a custom mask
python -m adapt with resume=4                          continue run 4, which was stopped
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.adapt.choosing import Choice, choose, print_remark, scored_problem, search_choice, search_first
from das_gym.adapt.finetuning import Start, load_reference, load_start, train_subnet, without_layers
from das_gym.adapt.finished_runs import RECORD
from das_gym.adapt.hardware import gib_bytes
from das_gym.adapt.report import (
    BASELINE,
    FULL_MODEL,
    MODEL_TITLES,
    SUBNET,
    TunedModelResult,
    command_record,
    compare_models,
    finish_subnet_run,
    limit_test,
    subnet_report,
    write_answers,
)
from das_gym.adapt.settings import AdaptSettings, TrainingConfig
from das_gym.adapt.step_loss import check_training, resolve_defaults
from das_gym.adapt.training import Log, add_prefix
from das_gym.agents.searching.loop import check_search
from das_gym.agents.settings import SearchConfig

from das_gym.commands.commandline import format_command
from das_gym.commands.progress import print_estimate
from das_gym.commands.recorded import Run, required_folder
from das_gym.commands.runs import runs_dir_setting
from das_gym.data.images import require_readable
from das_gym.data.splits import Splits
from das_gym.engine.caches import EncoderCache
from das_gym.models.adapters import parallel_adapters
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, check_prompts
from das_gym.processes import is_main_process
from das_gym.tasks.base import Task

FULL_MODEL_FILE = "full_model_adapter.safetensors"

EVALUATIONS = 80
FEW_LAYERS = 12
"""Masks that `bayes` scores when it searches first, and the most layers of a model to which this number applies. On
problems of up to 12 layers, half of it finds the best mask in more than 90 % of the searches (LEADERBOARD.md)."""


def adapt(settings: AdaptSettings, run: Run) -> float | None:
    """Search if no mask is given, fine-tune, evaluate and save; the test metric of the subnet is the result."""
    choice = choose(settings)
    problem = settings.problem if choice is None else choice.problem
    start = load_start(problem, searches=choice is None)
    search = search_config(settings, start)
    _check_start(start, settings, choice, search)
    if settings.estimate:
        from das_gym.adapt.phases import adapt_phases

        print_estimate(adapt_phases(settings, start, choice, search))
        return None
    folder = required_folder(run)
    if choice is None:
        choice = search_choice(search_first(search, run, folder, start.problem), problem)
    print_remark(choice)
    models = _cut_models(start.model, choice.mask, settings.references)
    splits = limit_test(start.splits, start.model.task, settings.test_examples)
    config, description = resolve_defaults(settings.train, models[SUBNET])
    print(description)
    untrained = () if settings.references else (BASELINE,)
    trained = {name: model for name, model in models.items() if name not in untrained}
    bundled = finetune_models(trained, problem, splits, config, folder, run.log_scalar)
    if not is_main_process():
        return 0.0
    info = dataclasses.asdict(config)
    artifacts = []
    if FULL_MODEL in models:
        models[FULL_MODEL].adaptation(**info).save(folder / FULL_MODEL_FILE)
        artifacts = [FULL_MODEL_FILE]
    rows = compare_models(models, splits, settings.rank_images, untrained, bundled)
    report = subnet_report(rows, problem, "fine-tuned", models[SUBNET])
    write_answers(folder, rows, start.model.task, splits.test)
    record = command_record(settings, rows, splits, report)
    report.print()
    finish_subnet_run(run, folder, models[SUBNET], info, record, RECORD, artifacts)
    _log_rows(rows, run.log_scalar)
    print(f"Next: {format_command('adapt export', f'run={folder.name}', 'out=DIR', runs_dir_setting(folder))}")
    return rows[SUBNET].metric


def _check_start(start: Start, settings: AdaptSettings, choice: Choice | None, search: SearchConfig) -> None:
    """Raise for what the loaded model and its data cannot do, before masks are searched or anything is trained."""
    backbone = start.model.backbone
    task = start.model.task
    check_training(backbone, task, settings.train, settings.train.itm_weight)
    if choice is not None:
        choice.check_model(backbone.base)
        backbone.vlp.check_mask(choice.mask)
        check_prompts(start.model, start.splits)
    else:
        check_search(search, scored_problem(search, start.problem))
    check_test_images(task, limit_test(start.splits, task, settings.test_examples).test)


def search_config(settings: AdaptSettings, start: Start) -> SearchConfig:
    """Return the search that runs first; on a small model, our own agent scores fewer masks."""
    search = settings.search
    if search.evaluations is not None:
        return search
    few = len(start.model.backbone.vlp.layers) <= FEW_LAYERS and search.agent == SearchConfig.agent
    return dataclasses.replace(search, evaluations=EVALUATIONS if few else SearchConfig.evaluations)


def _cut_models(base: AdaptedModel, mask: np.ndarray, references: bool) -> dict[str, AdaptedModel]:
    """Return the models of the table, copies that can be trained: the subnet and what it is compared with."""
    nothing = np.zeros_like(mask)
    models = {SUBNET: without_layers(base, mask)}
    if references and parallel_adapters(models[SUBNET].backbone.vlp):  # else the full model is the baseline
        models[FULL_MODEL] = without_layers(base, nothing)
    models[BASELINE] = without_layers(base, nothing, adapters=False)
    return models


def _log_rows(rows: Mapping[str, TunedModelResult], log: Callable[[str, float], None]) -> None:
    for row in rows.values():
        numbers = {name: getattr(row, name) for name in ("macs", "macs_saved", "trainable_parameters")}
        numbers["latency_ms"] = row.latency_ms.median
        if row.speedup is not None:
            numbers["speedup"] = row.speedup.ratio
        if row.evaluation is not None:
            numbers |= {f"test.{name}": value for name, value in row.evaluation.numbers.items()}
        for name, value in numbers.items():
            log(f"{row.name}.{name}", float(value))


def finetune_models(
    models: Mapping[str, AdaptedModel],
    problem: ProblemConfig,
    splits: Splits[Any],
    config: TrainingConfig,
    folder: Path,
    log: Log,
) -> list[str]:
    """Fine-tune models in place, and return the names of those whose trained weights are bundled with das_gym."""
    first = next(iter(models.values()))
    # The models share their frozen encoders, whose outputs are computed once.
    encoder_cache = EncoderCache(first.backbone.vlp, first.task.processor, gib_bytes(config.encoder_cache_gib))
    bundled = []
    for name, model in models.items():
        if name != SUBNET and load_reference(model, problem, config, name):
            bundled.append(name)
            continue
        title = f"fine-tuning, {MODEL_TITLES[name]}"
        checkpoint = folder / f"{name}.pt"
        train_subnet(model, splits, config, title, checkpoint, add_prefix(name, log), encoder_cache)
    return bundled


def check_test_images(task: Task, test: Sequence[Any]) -> None:
    """Open every test image once, so that a damaged one is reported before anything is trained."""
    require_readable(image for pair in task.pairs(test) for image in pair.images)
