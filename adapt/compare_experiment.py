"""Methods of fine-tuning side by side, under one recipe: the table of the paper.

python -m adapt compare                                            METER-mini on Shapes-VQA, every method, three seeds
python -m adapt compare with vilt_nlvr2 seeds=1 train.steps=200    quicker, of another model and task
python -m adapt compare with 'methods=["adapter","das"]' 'skip_nums=[2,4]'
python -m adapt compare with 'method_settings={"lora":{"rank":8}}'
python -m adapt compare with data_root=DIR supernet=FILE           on custom data, masks searched on its supernet
python -m adapt compare with resume=9                              continue run 9, which was stopped

The learning rate of each method is chosen on the reward split, by the same grid, with the first seed. Masks of DAS are
searched first: on the bundled table if one exists, else on the supernet. Random masks are trained for
comparison. compare.json in this run's folder has every training; `python -m adapt report 9` shows the table.
The model of each row that is best on the reward split is kept there: `python -m adapt evaluate with run=9 method=lora`.
"""

import dataclasses
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.adapt.adapt_experiment import check_test_images
from das_gym.adapt.choosing import choice_from_run, search_choice, search_first
from das_gym.adapt.compare.record import (
    Trial,
    best_trials,
    chosen_trials,
    comparison_report,
    comparison_table,
    kept_file,
    mean_test,
)
from das_gym.adapt.compare.trials import ComparisonContext, comparison_cells, method_variants, phases
from das_gym.adapt.finetuning import copy_model, with_new_head
from das_gym.adapt.methods import METHODS
from das_gym.adapt.methods.base import make_method
from das_gym.adapt.phases import search_first_phases
from das_gym.adapt.settings import CompareSettings
from das_gym.adapt.step_loss import check_training
from das_gym.agents.comparing.runner import Comparison
from das_gym.agents.settings import SearchConfig

from das_gym.commands.commandline import format_command
from das_gym.commands.progress import print_estimate
from das_gym.commands.recorded import Run, required_folder
from das_gym.commands.runs import runs_dir_setting
from das_gym.data.splits import Splits
from das_gym.drawing.architecture import Architecture
from das_gym.models.base import VLP
from das_gym.names import format_count
from das_gym.problem.budget import Budget
from das_gym.problem.config import ProblemConfig, recorded_settings
from das_gym.problem.loading import AdaptedModel, check_prompts, find_supernet, load_backbone, load_splits, supernet_model
from das_gym.problem.mask_space import MaskSpace
from das_gym.problem.problem import Problem, problem_from_model
from das_gym.processes import is_main_process, run_on_main_process
from das_gym.registration import find_environment

GRID = (5e-4, 2e-3, 8e-3)
"""Learning rates to choose from for small models."""

PAPER_FACTORS = (0.25, 1.0, 4.0)
"""Multiples of the paper's learning rate to choose from, for models of base size."""


def check_model(settings: CompareSettings, model: AdaptedModel, splits: Splits[Any]) -> None:
    """Raise for settings that the loaded model does not support."""
    vlp = model.backbone.vlp
    check_training(model.backbone, model.task, settings.train, settings.train.itm_weight)
    settings.check_skip_nums(len(vlp.layers))
    if any(str(k) not in settings.searches for k in settings.nums_to_search):
        _ = settings.problem.supernet_path  # raises where it is missing
    check_prompts(model, splits)
    check_test_images(model.task, splits.test)


def with_supported_methods(settings: CompareSettings, vlp: VLP) -> CompareSettings:
    """Return the settings with all methods that the model supports. Methods that are given explicitly must be supported."""
    supported = []
    for name in settings.methods or METHODS:
        try:
            make_method(name, settings.method_settings.get(name, {})).check(vlp)
            supported.append(name)
        except ValueError as error:
            if settings.methods:
                raise
            if is_main_process():
                print(f"left out: {error}")
    if not supported:
        raise ValueError(f"a {type(vlp).__name__} supports none of the methods {', '.join(METHODS)}")
    return dataclasses.replace(settings, methods=tuple(supported))


def search_config(settings: CompareSettings, skip_num: int) -> SearchConfig:
    """Return the search of masks that skip `skip_num` layers: on the bundled table, if one exists."""
    problem = settings.problem
    search = dataclasses.replace(settings.search, skip_num=skip_num)
    entry = find_environment(problem.model, problem.task)
    if entry.table is None or problem.env_kwargs.keys() - {"device"}:
        return search
    # A table needs no model, and so no device.
    bundled = ProblemConfig(problem.model, problem.task)
    return dataclasses.replace(search, env_id=entry.tabular_id, problem=bundled)


def compare(settings: CompareSettings, run: Run) -> float | None:
    """Train and measure all methods, print and save the table; return the best score (of DAS, if it takes part)."""
    problem = settings.problem
    splits = load_splits(problem)
    base = with_new_head(load_backbone(problem), problem.task, splits)
    settings = with_supported_methods(settings, base.backbone.vlp)
    check_model(settings, base, splits)
    folder = Path() if settings.estimate else required_folder(run)
    context = ComparisonContext(base, splits, settings.train, folder, settings.test_examples, run.log_scalar)
    masks = random_masks(settings, base) if settings.estimate else _find_masks(settings, base, splits, run)
    variants = method_variants(settings.methods, settings.method_settings, masks)
    rates = settings.learning_rates or GRID
    if not settings.learning_rates and base.backbone.vlp.size == "base":
        rates = tuple((context.recipe.learning_rate or 0.0) * share for share in PAPER_FACTORS)
    seeds = range(settings.seed, settings.seed + settings.seeds)
    if settings.estimate:
        searches = [search_config(settings, k) for k in settings.nums_to_search if str(k) not in settings.searches]
        searching = [phase for search in searches for phase in search_first_phases(search, None)[0]]
        print_estimate(chain(searching, phases(context, variants, rates, seeds)))
        return None
    count = len(variants) * len(seeds) + (len(rates) - 1) * sum(each.rate_of is None for each in variants)
    print(f"{context.description}\n{format_count(count, 'training')}; reduce train.steps, seeds or methods for fewer")
    metric = context.metric_name.replace("_", " ")
    recorded = recorded_settings(dataclasses.asdict(problem))
    about = {"problem": recorded, "model_settings": {}, "metric": context.metric_name}
    comparison = Comparison(folder, Trial, settings, about)
    by_key = {variant.key: variant for variant in variants}

    def run_trial(variant: str, seed: int, rate: float) -> Trial:
        try:
            model, adaptation, trial = context.train(by_key[variant], rate, seed)
        except FloatingPointError:
            if seed != settings.seed:
                raise
            return Trial(variant, seed, rate)
        rivals = [each for each in comparison.trials if each.variant == variant]
        # Processes may differ by rounding, and have to agree.
        is_best = run_on_main_process(lambda: all(trial.merit > each.merit for each in rivals))
        if seed == settings.seed and not is_best:  # its learning rate is not chosen
            context.checkpoint(variant, rate, seed).unlink(missing_ok=True)
            return trial
        trial = context.measure(model, trial, next((each for each in rivals if each.latency), None))
        if is_main_process() and is_best:
            # Saved before the record: a resumed run does not train a recorded trial again.
            adaptation.save(kept_file(folder, variant))
        return trial

    trials = comparison.run(comparison_cells(variants, rates, seeds, comparison, metric), count, run_trial)
    if not is_main_process():
        return None
    chosen = chosen_trials(by_key, trials)
    model_name = problem.checkpoint or find_environment(problem.model, problem.task).short
    tested = format_count(len(context.test_examples), "test example")
    title = f"{model_name}: {metric} after {format_count(settings.train.steps, 'step')}, {tested}"
    table = comparison_table(title, chosen)
    architecture = Architecture.from_layers(base.backbone.vlp.layers)
    comparison.results["report"] = comparison_report(
        f"{problem.model} on {problem.task}", metric, architecture, chosen, table
    )
    comparison.finish(run, table)
    for key, own in chosen.items():
        run.log_scalar(f"{key}.test", mean_test(own))
    best = max(best_trials(trials), key=lambda trial: trial.merit)
    words = f"run={folder.name}", f"method={best.variant}", runs_dir_setting(folder)
    print(f"the best model of each row is kept there, too; one of them: {format_command('adapt evaluate', *words)}")
    masked = [mean_test(own) for key, own in chosen.items() if key.startswith("das_")]
    return max(masked or map(mean_test, chosen.values()))


def random_masks(settings: CompareSettings, base: AdaptedModel) -> dict[int, tuple[int, ...]]:
    """Return a random mask for each number of skipped layers, which stands for the searched one in an estimate."""
    n_layers = len(base.backbone.vlp.layers)
    spaces = {k: MaskSpace(Budget(n_layers, k)) for k in settings.skip_nums}
    return {k: tuple(space.sample(np.random.default_rng(k)).astype(int).tolist()) for k, space in spaces.items()}


def _find_masks(settings: CompareSettings, base: AdaptedModel, splits: Splits[Any], run: Run) -> dict[int, tuple[int, ...]]:
    """Return a mask for each number of skipped layers: of the search that is named, or of one in a folder of this run."""
    folder = required_folder(run)
    config = settings.problem
    n_layers = len(base.backbone.vlp.layers)
    masks: dict[int, tuple[int, ...]] = {k: (0,) * n_layers for k in settings.skip_nums if not k}
    problem: Problem | None = None
    for k in settings.nums_to_search:
        source = settings.searches.get(str(k))
        if source is None:
            search = search_config(settings, k)
            if problem is None and search.env_id == config.env_id:
                supernet = supernet_model(config, find_supernet(config), splits, copy_model(base).backbone)
                problem = problem_from_model(supernet, splits, config)
            name = f"search_{k}"
            result = search_first(search, run, folder / name, problem, f"{name}.")
            mask = search_choice(result, config).mask
        else:
            choice = choice_from_run(settings.runs_dir, source, config.changed)
            choice.check_model(base.backbone.base)
            mask = choice.mask
        if mask.shape != (n_layers,) or mask.sum() != k:
            raise ValueError(f"searches.{k}={source} skips {mask.sum()} of {len(mask)} layers, expected {k} of {n_layers}")
        masks[k] = tuple(mask.astype(int).tolist())
    return masks
