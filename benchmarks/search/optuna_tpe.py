"""Optuna's tree-structured Parzen estimator as a rival, if Optuna is installed."""

import importlib.util
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from das_gym.agents.compare.comparison import AgentResult
from das_gym.agents.compare.oracle import Oracle

OPTUNA = "optuna"
"""Name on the leaderboard, and the package."""


def has_optuna() -> bool:
    """Whether Optuna is installed."""
    return importlib.util.find_spec(OPTUNA) is not None


def run_optuna(
    oracle: Oracle, agent: str, seeds: Sequence[int], evaluations: int, masks_per_turn: int, agent_kwargs: Mapping[str, Any]
) -> AgentResult:
    """Search with multivariate TPE over one number per layer, of which the largest are skipped. As `run_agent`.

    It is asked for one mask at a time, also for masks that were scored before. Its answer is the best mask so far.
    """
    import optuna

    del agent_kwargs
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    answers = []
    curves = []
    times = []
    for seed in seeds:
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True), direction="maximize")
        masks = []
        rewards = []
        started = time.process_time()
        for _ in range(evaluations):
            trial = study.ask()
            scores = [trial.suggest_float(str(layer), 0, 1) for layer in range(oracle.space.n_layers)]
            masks.append(oracle.space.top(np.array(scores)))
            rewards.append(float(oracle.rewards(masks[-1][None])[0]))
            study.tell(trial, rewards[-1])
        times.append(1e3 * masks_per_turn * (time.process_time() - started) / evaluations)
        answers.append(masks[int(np.argmax(rewards))])
        curves.append(np.maximum.accumulate(rewards))
    return AgentResult(agent, np.array(answers), np.array(curves), np.full(len(seeds), evaluations), np.array(times))
