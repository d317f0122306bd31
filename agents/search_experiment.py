"""Search which layers a task does not need.

    python -m agents search                                         our own agent, 4 of METER's layers, the bundled task
    python -m agents with meter_vqa bayes skip_num=4 seed=1         the same, spelt out, with another seed
    python -m agents with vilt_nlvr2 bandit macs_saved=0.12         the paper's bandit, ViLT, at least 12 % of the MACs saved
    python -m agents with meter_vqa latency_saved=0.15              or parameters_saved, memory_saved
    python -m agents with meter_vqa_table random evaluations=100    random search, on the table instead of the model
    python -m agents with bandit agent_kwargs.learning_rate=10      a setting of the agent
    python -m agents with meter_vqa ppo hyperparameters.learning_rate=1e-3      of Stable-Baselines3
    python -m agents with data_root=/data/vqav2 supernet=mine.safetensors
    python -m agents with my_model_vqa use=my_module                what my_module.py registers
    python -m agents with resume=3                                  go on with run 3, which was stopped

A run is kept in runs/<id>/: the found mask in search.json and search.png, its turns in search_history.json.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from das_gym.agents.ask_tell.base import AGENTS, check_agent_kwargs
from das_gym.agents.compare.ground_truth import ground_truth_of
from das_gym.agents.compare.plots import plot_skip_probabilities
from das_gym.agents.sb3.algorithms import ALGORITHMS, is_algorithm
from das_gym.agents.sb3.config import SB3_DEFAULTS, SB3Config, check_agent_name, sb3_config
from das_gym.agents.sb3.policy import agent_file
from das_gym.agents.searching.environment import make_env
from das_gym.agents.searching.loop import SearchConfig, check_search, search, with_costs
from das_gym.agents.searching.picture import draw_search
from das_gym.agents.searching.record import RECORD, SearchResult, Turn, best_row

from das_gym.commandline import typed
from das_gym.config import build, choice
from das_gym.envs.actions import ACTION_MODES
from das_gym.envs.scoring import REWARD_BATCHES
from das_gym.experiment import Run, RunsExperiment, run_folder
from das_gym.problem.config import PATH_SETTINGS, ComputeSettings, ModelSettings, setting_path
from das_gym.problem.mask_cost import SAVED, given_costs
from das_gym.problem.rewards import REWARDS
from das_gym.progress import progress
from das_gym.registration import named_environments
from das_gym.runs import ResumableSettings, runs_dir_words
from das_gym.wording import counted

PICTURE, PROBABILITIES = "search.png", "skip_probabilities.png"


@dataclass(frozen=True, kw_only=True)
class EnvSettings(ModelSettings, ComputeSettings):
    """Arguments of the environment, besides action and budget, as settings. Those that are not the default are passed on.

    Attributes:
        reward: How a mask is rewarded. `python -m agents list` shows the formulas.
        macs_price: Reward for saving all MACs of the baseline. A mask that saves half of them gets half of it.
        reward_examples: Number of examples that a mask is scored on. None means the task's own number: 500, or 64 for
            retrieval.
        reward_batches: Examples of each step: always the same (`fixed`), the next ones (`cycle`) or drawn anew
            (`resample`).
        latency_batch: Examples per forward pass when latency is measured for `latency_saved`.
        costs: JSON file with known costs of the layers, instead of measuring them.
    """

    group: ClassVar[str] = "Reward"

    reward: str = choice("exp_neg_loss", REWARDS)
    macs_price: float = 0.0
    reward_examples: int | None = None
    reward_batches: str = choice("fixed", REWARD_BATCHES)
    latency_batch: int = 1
    costs: str | None = None

    @property
    def given_to_env(self) -> dict[str, Any]:
        """The settings that are not the default, as keyword arguments of the environment."""
        values = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(EnvSettings) if getattr(self, f.name) != f.default
        }
        return {name: str(setting_path(name, value)) if name in PATH_SETTINGS else value for name, value in values.items()}


ENV_SETTINGS = tuple(f.name for f in dataclasses.fields(EnvSettings))


@dataclass(frozen=True)
class SearchSettings(ResumableSettings, SearchConfig, EnvSettings):
    """The settings of `python -m agents search`.

    Those declared here are for algorithms of Stable-Baselines3 alone, see `das_gym.agents.sb3.config`.

    Attributes:
        hyperparameters: Hyperparameters of an algorithm of Stable-Baselines3, as in `hyperparameters.learning_rate=1e-3`.
        n_envs: Number of parallel environments of an algorithm of Stable-Baselines3. None means `masks_per_turn`.
        action: Action space of an algorithm of Stable-Baselines3. None means the first that the algorithm supports.
        start_from: Trained agent to continue training: an agent.zip, or the folder of its run.
    """

    group: ClassVar[str] = "Stable-Baselines3"

    hyperparameters: dict[str, Any] = field(default_factory=dict)
    n_envs: int | None = None
    action: str | None = choice(None, ACTION_MODES)
    start_from: str | None = None

    def _check_budget(self) -> None:
        if not is_algorithm(self.agent):  # `SB3Config` has its own checks
            super()._check_budget()

    def _check_agent(self) -> None:
        if is_algorithm(self.agent):
            return
        check_agent_name(self.agent)
        for name in ("hyperparameters", "n_envs", "action", "start_from"):
            if getattr(self, name) not in (None, {}):
                raise ValueError(f"agent {self.agent!r} has no setting {name}; it is for {', '.join(ALGORITHMS)}")
        super()._check_agent()
        check_agent_kwargs(self.agent, self.agent_kwargs)

    def search_config(self) -> SearchConfig:
        """The search that they ask for.

        Raises:
            ValueError: a setting of the environment that is given twice.
        """
        env_kwargs = dict(self.env_kwargs)
        for name, value in self.given_to_env.items():
            if name in env_kwargs:
                raise ValueError(f"{name}={value} is given, and env_kwargs.{name}={env_kwargs[name]} too; give one of them")
            env_kwargs[name] = value
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(SearchConfig)}
        fields["env_kwargs"] = env_kwargs
        if is_algorithm(self.agent):
            return sb3_config(fields, self.hyperparameters, self.n_envs, self.action, self.start_from)
        return SearchConfig(**fields)


def named_configs() -> dict[str, dict[str, Any]]:
    """Settings by the word that stands for them: environments, their tables, agents, algorithms."""
    entries = named_environments()
    return {
        **{name: {"env_id": entry.id} for name, entry in entries.items()},
        **{f"{name}_table": {"env_id": entry.tabular_id} for name, entry in entries.items()},
        **{name: {"agent": name} for name in AGENTS},
        **{name: {"agent": name, **SB3_DEFAULTS} for name in ALGORITHMS},
    }


def check(settings: SearchSettings) -> None:
    """Refuse what environment or agent would refuse; both are made for that, model and data loaded.

    Raises:
        ValueError, FileNotFoundError, gymnasium.error.Error: what there is to mend.
    """
    config = settings.search_config()
    if not isinstance(config, SB3Config):
        return check_search(config)
    if config.start_from is not None:
        agent_file(config.start_from)
    make_env(config.env_id, config.mask_kwargs, config.masks_per_turn, free=False).close()
    return None


ex = RunsExperiment("agents", save_git_info=False)  # git refuses folders of other owners; the sources are kept anyway
ex.add_settings(SearchSettings, check)
ex.add_named_configs(named_configs)


@ex.main
def search_mask(
    _run: Run, _config: Mapping[str, Any], env_kwargs: Any, agent_kwargs: Any, hyperparameters: Any
) -> float | None:
    """Search a mask; the reward of the mask found is the result."""
    del env_kwargs, agent_kwargs, hyperparameters  # named so that Sacred lets them hold keys of their own
    settings = build(SearchSettings, _config)
    folder, resumed = run_folder(_run), settings.resume is not None
    config = with_costs(settings.search_config(), folder if resumed else None)
    log = _Log(_run, config)
    try:
        if isinstance(config, SB3Config):
            from das_gym.agents.sb3.experiment import search_with_sb3

            result = search_with_sb3(config, _run, folder, log, resumed)
        else:
            result = search(config, folder, on_turn=log, resume=resumed)
    finally:
        log.bar.close()
    if folder is not None:
        if result.skip_probabilities is not None:
            probabilities = np.array([turn.skip_probabilities for turn in result.history])
            title = f"{config.agent}, {config.env_id}, seed {config.seed}"
            mask = np.array(result.mask, bool)
            plot_skip_probabilities(folder / PROBABILITIES, probabilities, result.layer_names, mask, title)
            _run.add_artifact(folder / PROBABILITIES)
        draw_search(folder / PICTURE, result, [line.strip() for line in summary(result, None).splitlines()[2:4]])
        for name in (PICTURE, RECORD):
            _run.add_artifact(folder / name)
    print(summary(result, folder))
    return result.reward


class _Log:
    """Sends every turn to Sacred and to the progress bar."""

    def __init__(self, run: Run, config: SearchConfig) -> None:
        self.run, self.budget = run, config.mask_kwargs
        self.bar = progress(config.evaluations, "searching", unit="mask")
        self.evaluations = 0.0
        self.best: float | None = None  # of a mask that may be an answer

    def __call__(self, turn: Turn, layer_names: Sequence[str]) -> None:
        reward = (best_row([turn], self.budget) or {"reward": None})["reward"]
        self.best = max((value for value in (self.best, reward) if value is not None), default=None)
        scalars = {"reward": _mean(turn.rewards), "best_reward": self.best, "loss": _mean(turn.loss)}
        scalars["macs_saved"] = _mean(turn.macs_saved)
        if self.best is not None:
            self.bar.set_postfix_str(f"best reward {self.best:.4f}", refresh=False)
        self.bar.update(turn.cost)
        self.evaluations += turn.cost
        for name, p in zip(layer_names, turn.skip_probabilities or (), strict=False):
            scalars[f"skip_probability.{name}"] = p
        for name, value in scalars.items():
            if value is not None:
                self.run.log_scalar(name, value, self.evaluations)


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of the finite ones."""
    finite = [value for value in values if value is not None]
    return float(np.mean(finite)) if finite else None


def summary(result: SearchResult, folder: Path | None) -> str:
    """What a search found, in a few lines for a person; on a table, how that stands against the ground truth."""

    def shown(value: float | None) -> str:
        return "not finite" if value is None else f"{value:.4f}"

    lines = [
        f"{result.agent} on {result.env_id}, seed {result.seed}: {counted(result.evaluations, 'mask')} scored",
        f"  skips {result.n_skipped} of {len(result.layer_names)} layers: {', '.join(result.skipped_layers) or 'none'}",
        f"  reward {shown(result.reward)}, loss {shown(result.loss)}, metric {shown(result.metric)}",
        f"  {result.macs:,} MACs an example, {100 * result.macs_saved:.1f} % saved (baseline: {result.macs_full:,})",
    ]
    lines += [f"  {line}" for line in budget_lines(result.env_kwargs, result.mask)]
    truth = ground_truth_of(result.env_id, result.env_kwargs, result.mask)
    if truth is not None:
        lines.append(
            f"  against the ground truth: rank {truth.rank:,} of {truth.masks:,} masks, regret {truth.regret:.4f} "
            f"(the best reward is {truth.best_reward:.4f})"
        )
    if folder is not None:
        lines.append(f"  record: {folder / RECORD}")
    if folder is not None and ex.suggests:
        lines.append(f"Next: {typed('adapt', f'search_run={folder.name}', runs_dir_words(folder))}")
    return "\n".join(lines)


def budget_lines(env_kwargs: Mapping[str, Any], mask: Sequence[int]) -> list[str]:
    """What a mask saves of another cost than MACs, where the budget is of one."""
    row = np.array([mask], dtype=bool)
    return [
        f"{100 * cost.saved(row)[0]:.1f} % of the {SAVED[setting]} saved, asked for at least {100 * env_kwargs[setting]:g} %"
        for setting, cost in given_costs(env_kwargs.get("costs")).items()
        if env_kwargs.get(setting) is not None
    ]


def run_search(
    config_updates: Mapping[str, Any] | None = None, named_configs: Sequence[str] = ()
) -> tuple[str, Path, SearchResult]:
    """Run the experiment as `python -m agents with ...` does.

    Args:
        config_updates: Settings, see `SearchSettings`.
        named_configs: Names such as "meter_vqa", "bandit".

    Returns:
        The run's id, its folder and the result.

    Raises:
        das_gym.experiment.RunError: a setting or a file that is refused.
    """
    run = ex.run(config_updates=config_updates, named_configs=named_configs)
    folder = run_folder(run)
    if folder is None:
        raise RuntimeError("the search left no run folder")
    return str(run._id), folder, SearchResult.load(folder)
