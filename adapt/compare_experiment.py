"""Methods side by side on one model and its data, each with several seeds: of fine-tuning, or of choosing layers to remove.

python -m adapt compare                                            METER-mini on Shapes-VQA, every method, three seeds
python -m adapt compare with vilt_nlvr2 seeds=1 train.steps=200    quicker, of another model and task
python -m adapt compare with 'methods=["adapter","das"]' 'skip_nums=[2,4]'
python -m adapt compare with 'method_settings={"lora":{"rank":8}}'
python -m adapt compare with data_root=DIR supernet=FILE           on custom data, masks searched on its supernet
python -m adapt compare with vlm_answering macs_saved=0.2          agents that choose layers to remove, under one budget
python -m adapt compare with vlm_answering macs_saved=0.2 recover=none               faster: removal alone
python -m adapt compare with vlm_answering checkpoint=DIR data_root=DIR skip_num=4 'methods=["bayes","greedy","random"]'
python -m adapt compare with vlm_answering macs_saved=0.2 units=sublayers            attention and MLP apart
python -m adapt compare with resume=9                              continue run 9, which was stopped

Fine-tuning: the learning rate of each method is chosen on the reward split, by the same grid, with the first seed. Masks of
DAS are searched first: on the bundled table if one exists, else on the supernet. Random masks are trained for comparison.
The best model of each row on the reward split is kept: `python -m adapt evaluate with run=9 method=lora`.

Removal, of transformers models that answer in words: each agent searches, the layers that it found are removed, and the
model is measured before and after the same recovery. Searches are kept, `bayes_0/search.json` with seed 0.

compare.json has every trial, compare.md the table; `python -m adapt report 9` shows it.
"""

import dataclasses
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.adapt.adapt_experiment import check_test_images
from das_gym.adapt.choosing import search_choice, search_first
from das_gym.adapt.compare.record import FULL_MODEL, Trial, best_trials, mean_test
from das_gym.adapt.compare.rows import compare_rows
from das_gym.adapt.compare.settings import COMPARED, CompareSettings
from das_gym.adapt.compare.training import TrainingRows, method_variants
from das_gym.adapt.finetuning import copy_model, with_new_head
from das_gym.adapt.methods import METHODS
from das_gym.adapt.methods.base import make_method
from das_gym.adapt.phases import search_first_phases
from das_gym.adapt.shrinking.checks import as_vlm, check_config, check_loaded
from das_gym.adapt.shrinking.comparing import RemovalRows
from das_gym.adapt.shrinking.settings import SCORED, TEACHER_ANSWERS
from das_gym.adapt.step_loss import check_training
from das_gym.agents.comparing.runner import Comparison
from das_gym.agents.searching.record import SearchResult
from das_gym.agents.settings import SearchConfig

from das_gym.commands.commandline import format_command
from das_gym.commands.progress import Phase, print_estimate
from das_gym.commands.recorded import Run, required_folder
from das_gym.commands.runs import runs_dir_setting
from das_gym.data.splits import Splits
from das_gym.models.base import VLP
from das_gym.names import format_count
from das_gym.problem.budget import Budget
from das_gym.problem.config import ProblemConfig, recorded_settings
from das_gym.problem.loading import AdaptedModel, check_prompts, find_supernet, load_backbone, load_splits, supernet_model
from das_gym.problem.mask_space import MaskSpace
from das_gym.problem.problem import Problem, load_problem, problem_from_model
from das_gym.processes import is_main_process
from das_gym.registration import find_environment


def compare(settings: CompareSettings, run: Run) -> float | None:
    """Run all trials, print and save the table; return the best score (of DAS, if it takes part)."""
    rows, searching = (removal_rows if settings.removes_layers else training_rows)(settings, run)
    if settings.estimate:
        print_estimate(chain(searching, rows.phases()))
        return None
    folder = required_folder(run)
    recorded = recorded_settings(dataclasses.asdict(settings.problem))
    about = {"problem": recorded, "model_settings": {}, "metric": rows.metric}
    comparison = Comparison(folder, Trial, settings, about)
    found = compare_rows(rows, comparison)
    for name in (SCORED, TEACHER_ANSWERS):  # with which a stopped run would have continued
        for path in folder.glob(f"*_{name}"):
            path.unlink()
    if not is_main_process():
        return None
    comparison.results["report"] = found.report
    comparison.finish(run, found.table)
    for key, own in found.chosen.items():
        run.log_scalar(f"{key}.test", mean_test(own))
    scores = {key: mean_test(own) for key, own in found.chosen.items() if key != FULL_MODEL}
    if not settings.removes_layers:
        best = max(best_trials(found.trials), key=lambda trial: trial.merit)
        words = f"run={folder.name}", f"method={best.variant}", runs_dir_setting(folder)
        print(f"the best model of each row is kept there, too; one of them: {format_command('adapt evaluate', *words)}")
    return max([score for key, score in scores.items() if key.startswith("das_")] or scores.values())


def removal_rows(settings: CompareSettings, run: Run) -> tuple[RemovalRows, list[Phase]]:
    """Return the rows of agents that choose layers to remove, and no phases of searches besides."""
    removal = settings.removal
    check_config(removal.problem)
    problem = load_problem(removal.problem)
    removal = dataclasses.replace(removal, train=removal.train.for_model(as_vlm(problem)))
    check_loaded(removal, problem, None)

    def search(config: SearchConfig, folder: Path, prefix: str) -> SearchResult:
        return search_first(config, run, folder, problem, prefix)

    folder = Path() if settings.estimate else required_folder(run)
    return RemovalRows(removal, problem, settings.methods or COMPARED, settings.trial_seeds, folder, search), []


def training_rows(settings: CompareSettings, run: Run) -> tuple[TrainingRows, list[Phase]]:
    """Return the rows of methods of fine-tuning, and for an estimate the phases of the searches before them."""
    problem = settings.problem
    splits = load_splits(problem)
    base = with_new_head(load_backbone(problem), problem.task, splits)
    methods = supported_methods(settings, base.backbone.vlp)
    settings = dataclasses.replace(settings, methods=methods)
    check_model(settings, base, splits)
    variants = method_variants(methods, settings.method_settings, find_masks(settings, base, splits, run))
    folder = Path() if settings.estimate else required_folder(run)
    rows = TrainingRows(
        base,
        splits,
        settings.train,
        variants,
        settings.learning_rates,
        settings.trial_seeds,
        folder,
        settings.test_examples,
        run.log_scalar,
    )
    rows.title = f"{problem.checkpoint or find_environment(problem.model, problem.task).short}: {rows.title}"
    searching = []
    if settings.estimate:
        for k in settings.nums_to_search:
            searching += search_first_phases(search_config(settings, k), None)[0]
    else:
        print(f"{rows.description}\n{format_count(rows.count, 'training')}; reduce train.steps, seeds or methods for fewer")
    return rows, searching


def check_model(settings: CompareSettings, model: AdaptedModel, splits: Splits[Any]) -> None:
    """Raise for settings that the loaded model does not support."""
    check_training(model.backbone, model.task, settings.train, settings.train.itm_weight)
    settings.check_skip_nums(len(model.backbone.vlp.layers))
    if settings.nums_to_search:
        _ = settings.problem.supernet_path  # raises where it is missing
    check_prompts(model, splits)
    check_test_images(model.task, splits.test)


def supported_methods(settings: CompareSettings, vlp: VLP) -> tuple[str, ...]:
    """Return all methods that a model supports. Methods that are given explicitly must be supported."""
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
    return tuple(supported)


def search_config(settings: CompareSettings, skip_num: int) -> SearchConfig:
    """Return the search of masks that skip `skip_num` layers: on the bundled table, if one exists."""
    problem = settings.problem
    evaluations = settings.search.evaluations or SearchConfig.evaluations
    search = dataclasses.replace(settings.search, skip_num=skip_num, evaluations=evaluations)
    entry = find_environment(problem.model, problem.task)
    if entry.table is None or problem.env_kwargs.keys() - {"device"}:
        return search
    # A table needs no model, and so no device.
    bundled = ProblemConfig(problem.model, problem.task)
    return dataclasses.replace(search, env_id=entry.tabular_id, problem=bundled)


def find_masks(settings: CompareSettings, base: AdaptedModel, splits: Splits[Any], run: Run) -> dict[int, tuple[int, ...]]:
    """Search a mask for each number of skipped layers, in a folder of this run; an estimate takes random masks."""
    config = settings.problem
    n_layers = len(base.backbone.vlp.layers)
    masks: dict[int, tuple[int, ...]] = {k: (0,) * n_layers for k in settings.skip_nums if not k}
    problem: Problem | None = None
    for k in settings.nums_to_search:
        if settings.estimate:
            mask = MaskSpace(Budget(n_layers, k)).sample(np.random.default_rng(k))
        else:
            search = search_config(settings, k)
            if problem is None and search.env_id == config.env_id:
                supernet = supernet_model(config, find_supernet(config), splits, copy_model(base).backbone)
                problem = problem_from_model(supernet, splits, config)
            folder = required_folder(run) / f"search_{k}"
            result = search_first(search, run, folder, problem, f"search_{k}.")
            mask = search_choice(result, config).mask
        masks[k] = tuple(mask.astype(int).tolist())
    return masks
