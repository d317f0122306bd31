"""Which Stable-Baselines3 algorithms there are, which action space each takes, and settings that suit a thousand masks.

SB3's own defaults are for millions of steps: PPO's 2,048 steps a rollout would end a search of 1,000 masks before its first
update. The settings here update every 32 to 64 steps, do not discount (a mask is rewarded at its end alone) and keep
networks small. Any of them is changed by name, `hyperparameters.learning_rate=...`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from das_gym.config import check_names
from das_gym.envs.actions import ACTION_MODES
from das_gym.registration import find_class

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

OURS = ("self", "env", "seed", "verbose", "tensorboard_log", "monitor_wrapper", "_init_setup_model")
"""Arguments of SB3's constructors that are no hyperparameters: a search sets them itself."""

NET: dict[str, Any] = {"net_arch": [64]}
ON_POLICY: dict[str, Any] = {"gamma": 1.0, "gae_lambda": 1.0, "policy_kwargs": NET}
ACTOR_CRITIC: dict[str, Any] = {
    "learning_rate": 1e-3,
    "buffer_size": 20_000,
    "learning_starts": 40,
    "batch_size": 64,
    "gradient_steps": -1,  # as many as masks were scored
    "gamma": 0.0,  # an episode is one step: nothing comes after it
    "policy_kwargs": {"net_arch": [64, 64]},
}
VALUES: dict[str, Any] = {
    "learning_rate": 1e-3,
    "buffer_size": 20_000,
    "learning_starts": 100,
    "batch_size": 64,
    "gamma": 1.0,
    "train_freq": 1,
    "gradient_steps": -1,
    "target_update_interval": 100,
    "exploration_fraction": 0.5,
    "policy_kwargs": {"net_arch": [64, 64]},
}


@dataclass(frozen=True)
class Algorithm:
    """An algorithm of SB3.

    Attributes:
        name: How it is asked for.
        path: "module:class".
        actions: The action spaces that it takes, the one it searches with first.
        rollout: Steps between updates, all environments together; None for one that has no `n_steps`.
        defaults: Its settings for a thousand masks.
    """

    name: str
    path: str
    actions: tuple[str, ...]
    rollout: int | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)


ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm
    for algorithm in (
        Algorithm(
            "ppo",
            "stable_baselines3:PPO",
            ("scores", "sequence", "mask"),
            rollout=32,
            defaults={**ON_POLICY, "learning_rate": 3e-3},
        ),
        Algorithm(
            "a2c",
            "stable_baselines3:A2C",
            ("scores", "sequence", "mask"),
            rollout=16,
            # RMSprop's first steps are large: they end the exploration after 30 masks, far from the best
            defaults={**ON_POLICY, "learning_rate": 3e-3, "normalize_advantage": True, "use_rms_prop": False},
        ),
        Algorithm("trpo", "sb3_contrib:TRPO", ("scores", "sequence", "mask"), rollout=32, defaults=ON_POLICY),
        Algorithm(
            "maskable_ppo",
            "sb3_contrib:MaskablePPO",
            ("sequence", "mask"),
            rollout=64,
            defaults={**ON_POLICY, "learning_rate": 3e-3, "ent_coef": 0.05},
        ),
        Algorithm("dqn", "stable_baselines3:DQN", ("sequence",), defaults=VALUES),
        Algorithm(
            "qrdqn",
            "sb3_contrib:QRDQN",
            ("sequence",),
            defaults={**VALUES, "policy_kwargs": {"net_arch": [64, 64], "n_quantiles": 25}},
        ),
        Algorithm("sac", "stable_baselines3:SAC", ("scores",), defaults={**ACTOR_CRITIC, "ent_coef": 0.01}),
        Algorithm("td3", "stable_baselines3:TD3", ("scores",), defaults={**ACTOR_CRITIC, "action_noise": 0.6}),
        Algorithm("ddpg", "stable_baselines3:DDPG", ("scores",), defaults={**ACTOR_CRITIC, "action_noise": 1.0}),
        Algorithm("tqc", "sb3_contrib:TQC", ("scores",), defaults={**ACTOR_CRITIC, "ent_coef": 0.01}),
        Algorithm(
            "ars",
            "sb3_contrib:ARS",
            ("scores", "sequence"),
            defaults={"policy": "LinearPolicy", "n_delta": 8, "learning_rate": 0.1, "delta_std": 0.3},
        ),
    )
}
"""Every algorithm by name. Another class of SB3's kind is named by its "module:class"."""


def import_algorithm(path: str) -> type[BaseAlgorithm]:
    """The class "module:class" of SB3's kind.

    Raises:
        ValueError: it cannot be imported, or is no algorithm of SB3's kind.
    """
    from stable_baselines3.common.base_class import BaseAlgorithm

    try:
        cls = find_class(path)
    except ValueError as error:
        hint = "; pip install 'das_gym[sb3]'" if path.startswith("sb3_contrib") else ""
        raise ValueError(f"algorithm {error}{hint}") from error
    if not (isinstance(cls, type) and issubclass(cls, BaseAlgorithm)):
        raise ValueError(f"algorithm {path!r} is not a subclass of stable_baselines3's BaseAlgorithm")
    return cls


def is_algorithm(agent: str) -> bool:
    """Whether an agent's name means an algorithm of SB3: a key of `ALGORITHMS`, or "module:class" of one.

    Never raises: a name that means nothing is left to whoever looks for other agents.
    """
    if agent in ALGORITHMS:
        return True
    if ":" not in agent:
        return False
    try:
        import_algorithm(agent)
    except ValueError:
        return False
    return True


def find_algorithm(algorithm: str | type[BaseAlgorithm]) -> tuple[type[BaseAlgorithm], Algorithm]:
    """The class, and what is known of it: an unknown subclass inherits from the nearest known algorithm.

    Args:
        algorithm: A key of `ALGORITHMS`, "module:class", or the class itself.

    Raises:
        ValueError: no such algorithm; names the nearest.
    """
    if isinstance(algorithm, str):
        if ":" not in algorithm:
            check_names([algorithm], ALGORITHMS, "algorithm of SB3 (or give 'module:class')")
            return import_algorithm(ALGORITHMS[algorithm].path), ALGORITHMS[algorithm]
        algorithm = import_algorithm(algorithm)
    name = f"{algorithm.__module__}:{algorithm.__qualname__}"
    for cls in algorithm.__mro__:
        for known in ALGORITHMS.values():
            if cls.__name__ == known.path.partition(":")[2] and cls.__module__.startswith(known.path.partition(":")[0]):
                return algorithm, Algorithm(name, name, known.actions, known.rollout, known.defaults)
    return algorithm, Algorithm(name, name, ("scores", "sequence", "mask"))


def reads_masks(cls: type[BaseAlgorithm]) -> bool:
    """Whether an algorithm can be told which actions have an effect, as MaskablePPO can."""
    return "action_masks" in inspect.signature(cls.predict).parameters


def choose_action(known: Algorithm, action: str | None) -> tuple[str, ...]:
    """The action spaces to try, in this order: the one asked for, or those that the algorithm takes.

    Raises:
        ValueError: it does not take the one asked for.
    """
    if action is None:
        return known.actions
    check_names([action], ACTION_MODES, "action")
    if action not in known.actions:
        raise ValueError(f"{known.name} does not take action={action!r}; it takes {', '.join(known.actions)}")
    return (action,)


def with_defaults(cls: type[BaseAlgorithm], known: Algorithm, given: Mapping[str, Any], n_envs: int) -> dict[str, Any]:
    """All that the constructor gets: the defaults of a search, and over them what is given; plain values.

    Args:
        cls: The algorithm.
        known: What is known of it.
        given: Settings by name.
        n_envs: Environments side by side, which share the steps between two updates.

    Raises:
        ValueError: a setting or a policy that the algorithm does not have; names the nearest.
    """
    names = _setting_names(cls)
    check_names(given, names, f"setting of {known.name},")
    aliases = getattr(cls, "policy_aliases", {})
    values = {"policy": _default_policy(aliases), "device": "cpu", **known.defaults, **given}
    if aliases:
        check_names([values["policy"]], aliases, f"policy of {known.name},")
    if known.rollout is not None:
        values.setdefault("n_steps", max(2, known.rollout // n_envs))
        values.setdefault("batch_size", min(64, int(values["n_steps"]) * n_envs))
    return {name: value for name, value in values.items() if name in names}


class ActionSpaceError(ValueError):
    """An algorithm does not take an action space."""


def make_model(
    cls: type[BaseAlgorithm], settings: Mapping[str, Any], env: VecEnv, seed: int, own: Mapping[str, Any] | None = None
) -> BaseAlgorithm:
    """The algorithm on the environments.

    Args:
        cls: Its class.
        settings: What `with_defaults` gives. `action_noise` may be a number: the standard deviation of normal noise.
        env: Where it trains.
        seed: Of everything that it draws.
        own: More arguments of the constructor, which no file holds.

    Raises:
        ActionSpaceError: the algorithm does not take this action space.
        ValueError: it refuses its settings.
    """
    from stable_baselines3.common.noise import NormalActionNoise

    values = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    values = copy.deepcopy(values)  # SB3 writes into `policy_kwargs`
    noise = values.get("action_noise")
    if isinstance(noise, (int, float)) and not isinstance(noise, bool):
        shape = env.action_space.shape
        values["action_noise"] = NormalActionNoise(np.zeros(shape), np.full(shape, float(noise)))
    try:
        return cls(env=env, seed=seed, **{**values, **(own or {})})
    except (AssertionError, TypeError, ValueError) as error:
        about_space = isinstance(error, AssertionError) and "action space" in str(error)  # as SB3's base class says it
        refusal = ActionSpaceError if about_space else ValueError
        raise refusal(f"{cls.__name__} cannot be made with {dict(settings)} on {env.action_space}: {error}") from error


def _default_policy(aliases: Iterable[str]) -> str:
    """The policy for observations that are numbers: `MlpPolicy`, or what the algorithm has in its place."""
    names = ["MlpPolicy"] if "MlpPolicy" in aliases else [name for name in aliases if name.startswith("Mlp")]
    return names[0] if names else "MlpPolicy"


def _setting_names(cls: type[BaseAlgorithm]) -> list[str]:
    """Names of the hyperparameters of a class; what it passes on to its parents by ** is looked for there."""
    names: list[str] = []
    for parent in cls.__mro__:
        if "__init__" not in vars(parent):
            continue
        parameters = inspect.signature(parent).parameters.values()
        keywords = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names += [p.name for p in parameters if p.kind in keywords and p.name not in (*OURS, *names)]
        if all(p.kind is not inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return names
