"""The algorithms of Stable-Baselines3: their action spaces, and settings for searches of a thousand masks.

SB3's own defaults are for millions of steps: PPO's 2,048 steps per rollout would end a search of 1,000 masks before its
first update. The settings here update every 16 to 64 steps, do not discount (a mask is rewarded only at its end) and keep
networks small. Each can be changed by name, `agent_kwargs.learning_rate=...`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from das_gym.names import check_names
from das_gym.problem.budget import is_whole
from das_gym.problem.config import check_device
from das_gym.registration import find_class

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

SB3_DEFAULTS: dict[str, Any] = {"masks_per_turn": 4, "evaluations": 1000, "save_every": 25}
"""Settings of a search by SB3 that `python -m agents with ppo` and so on set; those of other agents are smaller."""

SET_BY_SEARCH = ("self", "env", "seed", "verbose", "tensorboard_log", "monitor_wrapper", "_init_setup_model")
"""Arguments of SB3's constructors that a search sets itself."""

ON_POLICY: dict[str, Any] = {"gamma": 1.0, "gae_lambda": 1.0, "policy_kwargs": {"net_arch": [64]}}
OFF_POLICY: dict[str, Any] = {
    "learning_rate": 1e-3,
    "buffer_size": 20_000,
    "batch_size": 64,
    "gradient_steps": -1,  # as many as masks were scored
    "policy_kwargs": {"net_arch": [64, 64]},
}
ACTOR_CRITIC = {**OFF_POLICY, "learning_starts": 40, "gamma": 0.0}  # an episode is one step: nothing comes after it
VALUE_BASED: dict[str, Any] = {
    **OFF_POLICY,
    "learning_starts": 100,
    "gamma": 1.0,
    "train_freq": 1,
    "target_update_interval": 100,
    "exploration_fraction": 0.5,
}


@dataclass(frozen=True)
class Algorithm:
    """An algorithm of SB3, with its settings for a thousand masks."""

    name: str
    path: str  # "module:class"
    actions: tuple[str, ...]  # that it supports, the default first
    rollout: int | None = None  # steps between updates, all environments together; None if it has no `n_steps`
    defaults: Mapping[str, Any] = field(default_factory=dict)


# With A2C's default RMSprop the first steps are large and end the exploration after 30 masks, far from the best.
_A2C = {**ON_POLICY, "learning_rate": 3e-3, "normalize_advantage": True, "use_rms_prop": False}
_ARS = {"policy": "LinearPolicy", "n_delta": 8, "learning_rate": 0.1, "delta_std": 0.3}
_PPO = {**ON_POLICY, "learning_rate": 3e-3}
_QRDQN = {**VALUE_BASED, "policy_kwargs": {"net_arch": [64, 64], "n_quantiles": 25}}
_ANY_ACTION = ("scores", "sequence", "mask")

ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm
    for algorithm in (
        Algorithm("ppo", "stable_baselines3:PPO", _ANY_ACTION, 32, _PPO),
        Algorithm("a2c", "stable_baselines3:A2C", _ANY_ACTION, 16, _A2C),
        Algorithm("trpo", "sb3_contrib:TRPO", _ANY_ACTION, 32, ON_POLICY),
        Algorithm("maskable_ppo", "sb3_contrib:MaskablePPO", ("sequence", "mask"), 64, {**_PPO, "ent_coef": 0.05}),
        Algorithm("dqn", "stable_baselines3:DQN", ("sequence",), defaults=VALUE_BASED),
        Algorithm("qrdqn", "sb3_contrib:QRDQN", ("sequence",), defaults=_QRDQN),
        Algorithm("sac", "stable_baselines3:SAC", ("scores",), defaults={**ACTOR_CRITIC, "ent_coef": 0.01}),
        Algorithm("td3", "stable_baselines3:TD3", ("scores",), defaults={**ACTOR_CRITIC, "action_noise": 0.6}),
        Algorithm("ddpg", "stable_baselines3:DDPG", ("scores",), defaults={**ACTOR_CRITIC, "action_noise": 1.0}),
        Algorithm("tqc", "sb3_contrib:TQC", ("scores",), defaults={**ACTOR_CRITIC, "ent_coef": 0.01}),
        Algorithm("ars", "sb3_contrib:ARS", ("scores", "sequence"), defaults=_ARS),
    )
}
"""Every algorithm by name. Other subclasses of SB3's BaseAlgorithm are named by their "module:class"."""


def import_algorithm(path: str) -> type[BaseAlgorithm]:
    """Import the subclass of SB3's BaseAlgorithm called "module:class"; ValueError if it is none."""
    from stable_baselines3.common.base_class import BaseAlgorithm

    try:
        cls = find_class(path)
    except ValueError as error:
        hint = ". Run pip install 'das_gym[sb3]'" if path.startswith("sb3_contrib") else ""
        raise ValueError(f"algorithm {error}{hint}") from error
    if not (isinstance(cls, type) and issubclass(cls, BaseAlgorithm)):
        raise ValueError(f"algorithm {path!r} is no algorithm: expected a subclass of stable_baselines3's BaseAlgorithm")
    return cls


def is_algorithm(agent: str) -> bool:
    """Return True if an agent's name is an SB3 algorithm: a key of `ALGORITHMS`, or the "module:class" of one."""
    if agent in ALGORITHMS or ":" not in agent:
        return agent in ALGORITHMS
    try:
        import_algorithm(agent)
    except ValueError:
        return False
    return True


def find_algorithm(name: str) -> tuple[type[BaseAlgorithm], Algorithm]:
    """Return the class of a key of `ALGORITHMS` or of "module:class", and its `Algorithm`; ValueError for others.

    An unknown subclass has the settings of the nearest known algorithm.
    """
    if name in ALGORITHMS:
        return import_algorithm(ALGORITHMS[name].path), ALGORITHMS[name]
    algorithm = import_algorithm(name)
    for cls in algorithm.__mro__:
        for known in ALGORITHMS.values():
            package, _, class_name = known.path.partition(":")
            if cls.__name__ == class_name and cls.__module__.startswith(package):
                return algorithm, Algorithm(name, name, known.actions, known.rollout, known.defaults)
    return algorithm, Algorithm(name, name, _ANY_ACTION)


def choose_action(known: Algorithm, action: str | None) -> str:
    """Return the given action space, or the algorithm's default."""
    if action is None:
        return known.actions[0]
    check_names([action], known.actions, f"action of {known.name},")
    return action


def with_defaults(cls: type[BaseAlgorithm], known: Algorithm, given: Mapping[str, Any], n_envs: int) -> dict[str, Any]:
    """Return all arguments of the constructor as plain values: the defaults of a search, updated by what is given.

    `n_envs` parallel environments share the steps between two updates.
    """
    names = hyperparameters(cls)
    check_names(given, names, f"setting of {known.name},")
    # Observations are vectors of numbers: MlpPolicy, or what the algorithm has instead, as RecurrentPPO's MlpLstmPolicy.
    policies = list(getattr(cls, "policy_aliases", {}))
    aliases = [name for name in policies if name.startswith("Mlp")]
    policy = "MlpPolicy" if "MlpPolicy" in aliases or not aliases else aliases[0]
    values = {"policy": policy, "device": "cpu", **known.defaults, **given}
    if policies:
        check_names([values["policy"]], policies, f"policy of {known.name},")
    try:
        check_device(str(values["device"]))
        from das_gym.problem.loading import pick_device  # imports torch

        pick_device(str(values["device"]))
    except ValueError as error:
        raise ValueError(f"setting of {known.name}: {error}") from error
    if known.rollout is not None:
        steps = values.setdefault("n_steps", max(2, known.rollout // n_envs))
        if not is_whole(steps):
            raise ValueError(f"`n_steps` of {known.name} is not allowed: got {steps!r}, expected a whole number.")
        values.setdefault("batch_size", min(64, int(steps) * n_envs))
    return {name: value for name, value in values.items() if name in names}


def hyperparameters(cls: type[BaseAlgorithm]) -> list[str]:
    """Return the names of a class's hyperparameters, including those that it passes to its parents by **kwargs."""
    names: list[str] = []
    for parent in cls.__mro__:
        if "__init__" not in vars(parent):
            continue
        parameters = inspect.signature(parent).parameters.values()
        keywords = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names += [p.name for p in parameters if p.kind in keywords and p.name not in (*SET_BY_SEARCH, *names)]
        if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return names


def make_model(cls: type[BaseAlgorithm], settings: Mapping[str, Any], env: VecEnv, seed: int) -> BaseAlgorithm:
    """Make an SB3 model with the settings that `with_defaults` returns; ValueError if SB3 rejects them.

    `action_noise` may be a number: the standard deviation of normal noise.
    """
    from stable_baselines3.common.noise import NormalActionNoise

    values = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    values = copy.deepcopy(values)  # SB3 writes into `policy_kwargs`
    noise = values.get("action_noise")
    if isinstance(noise, (int, float)) and not isinstance(noise, bool):
        shape = env.action_space.shape
        values["action_noise"] = NormalActionNoise(np.zeros(shape), np.full(shape, float(noise)))
    try:
        return cls(env=env, seed=seed, **values)
    except (AssertionError, TypeError, ValueError) as error:  # SB3 asserts that it supports the action space
        raise ValueError(f"{cls.__name__} cannot be made with {dict(settings)} on {env.action_space}: {error}") from error
