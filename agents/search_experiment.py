"""Search which layers a task does not need.

    python -m agents search                                         our own agent, 4 of METER's layers, the bundled task
    python -m agents with meter_vqa bayes skip_num=4 seed=1         the same, spelt out, with another seed
    python -m agents with vilt_nlvr2 bandit macs_saved=0.12         the paper's bandit, ViLT, at least 12 % of the MACs saved
    python -m agents with meter_vqa latency_saved=0.15              or parameters_saved, memory_saved
    python -m agents with meter_vqa_table random evaluations=100    random search, on the table instead of the model
    python -m agents with bandit agent_kwargs.learning_rate=10      a setting of the agent
    python -m agents with meter_vqa ppo agent_kwargs.learning_rate=1e-3   an algorithm of Stable-Baselines3, 1,000 masks
    python -m agents with meter_vqa_table maskable_ppo masks_per_turn=8     eight environments side by side
    python -m agents with agent=sb3_contrib:CrossQ                  any class of SB3's kind
    python -m agents with data_root=/data/vqav2 supernet=mine.safetensors
    python -m agents with my_model_vqa plugins=my_module              what my_module.py registers
    python -m agents with resume=3                                  continue run 3, which was stopped

A run is kept in runs/<id>/: the found mask in search.json and search.png, its turns in search_history.json.
"""

import math
import sys
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.agents.sb3.algorithms import is_algorithm
from das_gym.agents.searching.loop import check_search, run_search
from das_gym.agents.searching.record import RECORD, SearchResult, Turn, best_rows, finite_reward
from das_gym.agents.searching.scorer import make_scored, open_scorer
from das_gym.agents.settings import SearchConfig, SearchSettings

from das_gym.commands.commandline import format_command
from das_gym.commands.progress import Phase, print_estimate
from das_gym.commands.recorded import Run, run_folder
from das_gym.commands.runs import runs_dir_setting
from das_gym.drawing.architecture import Architecture, draw
from das_gym.drawing.report import Progress
from das_gym.envs.engine_scoring import EngineScorer
from das_gym.envs.scoring import Scorer
from das_gym.files import replacing
from das_gym.problem.budget import Masks, satisfies_budget
from das_gym.problem.problem import Problem
from das_gym.problem.statistic_inputs import measure_activity
from das_gym.problem.statistics import single_removals
from das_gym.registration import MODELS, TASKS, env_entry, is_tabular

FIGURE = "search.png"


def search_phases(scorer: Scorer, config: SearchConfig) -> list[Phase]:
    """Return the phases of a search; none if no model scores its masks, or Ray's workers do."""
    if not isinstance(scorer, EngineScorer):
        return []
    problem = scorer.problem
    if problem.scoring.workers is not None:
        return []
    examples = scorer.fixed_examples
    evaluator = problem.evaluator.with_empty_caches()
    rng = np.random.default_rng(0)
    n_layers = scorer.n_layers

    def statistics(count: int) -> None:
        fresh = problem.evaluator.with_empty_caches()  # which has to run the encoders
        measure_activity(fresh, examples[:count])
        if scorer.observation_masks:
            fresh.losses(single_removals(n_layers), examples[:count])

    def score(masks: np.ndarray, count: int) -> None:
        evaluator.evaluate_each(masks, examples[:count], block=(0, count))  # which does not remember scores

    search = Phase(
        "search",
        len(examples),
        lambda count: score(scorer.budget.skip_highest(rng.normal(size=(config.masks_per_turn, n_layers))), count),
        problem.evaluator.batch_size,
        repeats=config.evaluations / config.masks_per_turn,
        prepare=lambda count: score(np.zeros((1, n_layers), dtype=bool), count),
        example_bytes=problem.task.passes * problem.walk_bytes,
        kept_bytes=evaluator.kept_bytes,
    )
    return [Phase("layer statistics", len(examples), statistics, problem.evaluator.batch_size), search]


def search_mask(settings: SearchSettings, run: Run) -> float | None:
    """Search a mask; return the reward of the mask found, or None for an estimate or a loss that is not finite."""
    check_search(settings)
    if settings.estimate:
        print_estimate(search_phases(open_scorer(settings.env_id, settings.mask_kwargs), settings))
        return None
    folder = run_folder(run)
    result = search_in_run(settings, run, folder)
    if folder is not None:
        print_next_command(settings.env_id, folder)
    return result.reward


def print_next_command(env_id: str, folder: Path, *words: str) -> None:
    """Print the command that uses the result of a search in the folder of a run; `words` are further settings of it."""
    entry = env_entry(env_id)
    if entry is None:  # of a module of the user
        return
    command = "adapt shrink" if MODELS[entry.model].reads_prompts else "adapt"
    if is_tabular(env_id) and TASKS[entry.task].needs_data:  # a table does not say where model and data are
        words += ("checkpoint=DIR", "data_root=DIR")
    print(f"Next: {format_command(command, f'search_run={folder.name}', *words, runs_dir_setting(folder))}")


def search_in_run(
    config: SearchConfig, run: Run, folder: Path | None, problem: Problem | None = None, prefix: str = ""
) -> SearchResult:
    """Search, log every turn to Sacred, print what was found, and write record and figure into a folder of the run.

    A search that was stopped in the folder continues. The turns of one that has ended are logged again, since a kill loses
    the last ones.

    Args:
        config: The search.
        run: The run that the metrics go to.
        folder: The folder of the search; None keeps nothing.
        problem: The loaded problem of the environment; None loads it.
        prefix: Begins the names of the logged series.
    """
    log = TurnLog(run, config, prefix)
    if is_algorithm(config.agent):
        result = _search_with_sb3(config, run, folder, log, problem)
    else:
        result = run_search(config, folder, log, problem)
    facts = search_facts(result)
    lines = [f"{name}: {value}" for name, value in facts.items() if name != "agent"]
    print("\n  ".join([f"{config.agent}, seed {config.seed}:", *lines]))
    if folder is not None:
        draw_search(folder, result, facts)
        _add_artifacts(run, folder, FIGURE, RECORD)
        print(f"record: {folder / RECORD}")
    return result


def search_facts(result: SearchResult) -> dict[str, str]:
    """Return what a search found, by name: for its report, its figure and the printed summary."""
    return result.facts() | ground_truth(result.env_id, result.env_kwargs, result.mask)


def ground_truth(env_id: str, env_kwargs: Mapping[str, Any], mask: Masks) -> dict[str, str]:
    """Return a mask's rank and regret among all within the budget, in words; empty without a table or off the budget."""
    if not is_tabular(env_id):
        return {}
    env = make_scored(env_id, env_kwargs)
    if not env.budget.is_feasible(mask[None])[0]:
        return {}
    rank = env.table.rank(mask, env.scorer.objective, env.scorer.split)
    regret = env.table.regret(mask, env.scorer.objective, env.scorer.split)
    count = env.budget.is_feasible(env.table.masks).sum()
    return {"rank of the answer": f"{rank:,} of {count:,}", "regret of the answer": f"{regret:.4f}"}


def draw_search(folder: Path, result: SearchResult, facts: Mapping[str, str]) -> None:
    """Write a PNG of the answer on the architecture, the best reward over evaluations, and the first of `search_facts`."""
    from PIL import Image

    title = f"{result.agent}: {result.n_skipped} of {len(result.mask)} units skipped, {result.env_id}"
    progress = search_progress(result)
    best = [] if progress is None else [reward for reward in progress.best if reward is not None]
    lines = [f"{name}: {value}" for name, value in facts.items()]
    image = draw(search_architecture(result), result.mask, title, lines[2:8], best=best)
    with replacing(folder / FIGURE) as part:
        Image.fromarray(image).save(part, "PNG")


def search_architecture(result: SearchResult) -> Architecture:
    """Return the searched units: from the record, or from the layer names alone if it holds none."""
    return Architecture(result.units) if result.units else Architecture.from_names(result.layer_names)


def search_progress(result: SearchResult) -> Progress | None:
    """Return reward and best reward after every scored mask; None without turns."""
    found = Progress([], [])
    so_far: float | None = None
    for turn in result.history:
        for row, share in zip(turn.rows, turn.shares, strict=True):
            reward = row["reward"]
            allowed = share == 1.0 and satisfies_budget(result.env_kwargs, row["mask"], row["macs_saved"])
            if reward is not None and allowed:
                so_far = reward if so_far is None else max(so_far, reward)
            found.rewards.append(reward)
            found.best.append(so_far)
    return found if found.rewards else None


def _search_with_sb3(
    config: SearchConfig, run: Run, folder: Path | None, log: "TurnLog", problem: Problem | None
) -> SearchResult:
    """Search with an algorithm of Stable-Baselines3, whose metrics go to Sacred, to standard output and to TensorBoard."""
    from das_gym.agents.sb3.train import MODEL_FILE, train_sb3
    from stable_baselines3.common.logger import HumanOutputFormat, KVWriter

    class SacredWriter(KVWriter):
        def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
            for name, value in key_values.items():
                if isinstance(value, Real) and math.isfinite(value) and "sacred" not in (key_excluded.get(name) or ()):
                    run.log_scalar(name, float(value), step)

        def close(self) -> None:
            pass  # the run is still active

    trained = train_sb3(config, folder, log, (HumanOutputFormat(sys.stdout), SacredWriter()), problem)
    print(f"{config.agent} in action space {trained.action!r}, {trained.model.num_timesteps} steps; its own answer:")
    print(f"  reward {trained.policy['reward']}, mask {trained.policy['mask']}")
    if trained.starved:
        print(
            f"  ended after {trained.result.masks_asked} of {config.evaluations} evaluations: nearly none of its masks kept "
            "the budget; action=sequence and action=scores always keep it"
        )
    if folder is not None:
        _add_artifacts(run, folder, MODEL_FILE)
    return trained.result


def _add_artifacts(run: Run, folder: Path, *names: str) -> None:
    """Add files of a search as artifacts, by their paths in the run's folder: Sacred would copy them there by their names.

    Of a comparison, the record of one of its searches would look like that of the run.
    """
    of_run = run_folder(run) or folder
    for name in names:
        run.add_artifact(folder / name, (folder / name).relative_to(of_run).as_posix())


class TurnLog:
    """Sends every turn to Sacred."""

    def __init__(self, run: Run, config: SearchConfig, prefix: str) -> None:
        self.run = run
        self.prefix = prefix
        self.budget = config.mask_kwargs
        self.evaluations = 0.0
        self.best = -math.inf  # of masks that may be an answer

    def __call__(self, turn: Turn) -> None:
        """Log a turn."""
        self.best = max([self.best, *(finite_reward(row) for row in best_rows([turn], self.budget))])
        self.evaluations += turn.cost
        columns: dict[str, Any] = {"reward": turn.rewards, "best_reward": [self.best], "loss": turn.loss}
        columns["macs_saved"] = turn.macs_saved
        for name, values in columns.items():
            finite = [value for value in values if value is not None and value > -math.inf]
            if finite:
                self.run.log_scalar(f"{self.prefix}{name}", float(np.mean(finite)), self.evaluations)
