"""The environments of many problems: every episode draws one, so that the observation matters; or is a search of one."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from operator import attrgetter
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from das_gym.envs.episodes import MaskEnv
from das_gym.envs.rendering import LastStep
from das_gym.envs.scoring import first_row
from das_gym.envs.suite_episodes import SuiteEpisodes, joined
from das_gym.envs.vector_env import MaskVectorEnv
from das_gym.names import check_arguments
from das_gym.problem.budget import is_whole
from das_gym.tables.suite import DEFAULT_BUDGETS, MAX_UNITS, load_suite


class SuiteEnv(MaskEnv, gymnasium.Env[Any, Any]):
    """Which units to skip, on a problem drawn from a suite of hundreds.

    ## Description
    A problem is a model, a group of examples (all of a task's, or one type of questions) and a budget. `reset` draws one,
    with equal probability, and shows the layer statistics of the full model on these examples; the action chooses a mask;
    the reward compares it with all masks that satisfy the budget. A policy that ignores the observation earns what the best
    fixed mask does; `test` has models, tasks and a kind of model that `train` lacks.

    ## Action Space
    `action="mask"`: `MultiBinary(16)`, 1 = skip. `"sequence"`: `Discrete(16)`, one unit a step until the budget is kept,
    with `action_masks()` and `info["action_mask"]`; an action without effect stands for the next one that has.
    `"scores"`: `Box(-1, 1, (16,))`, units are skipped from the highest score down until the budget is kept. Units that the
    model does not have are never skipped, whatever the action.

    ## Observation Space
    A `Dict` of vectors, all float32; with `flat=True` one `Box` of them, in this order:
    `statistics` (16 x statistics, unit by unit, 0 where there is no unit), `units` (16: 1 where there is one), `savings`
    (16: share of the cost that skipping it saves), `budget` (2: share of the units to skip, or 0; share of the cost to
    save, or 0); and with `action="sequence"` `skipped` (16) and `saved` (1: share of the cost saved so far). The cost is
    the one that the budget limits, such as MACs or measured latency; for `skip_num` it is MACs. `feature_names` names the
    entries of all parts in this order.

    ## Rewards
    Scaled by problem: 0 is what skipping units in a random order earns in the mean, 1 what the best mask earns, and -1 the
    least for a mask that keeps its budget. One off its budget earns -1 less by how much it misses it (0..1).

    ## Starting State
    The problem is drawn by the environment's generator, or is `options={"problem": number or name}`.

    ## Episode End
    As soon as the mask is chosen.

    ## Information
    `raw_reward` (before scaling; -inf where no mask that keeps the budget was scored), `regret` (in the same unit), `loss`,
    `metric`, `macs_saved`, `n_skipped`, `feasible`, `problem`, `random_mean`, `optimum`; of sequences `invalid_action` and
    `action_mask`; for each other cost that a budget of the environment limits, its share saved, such as `latency_saved`.

    ## Arguments
    split: `train`, `valid` or `test`.
    action, flat: As above.
    reward: What is scaled, see `das_gym.problem.rewards.REWARDS`. Tables hold divergences of all examples together alone, so
        that with `neg_kl` groups give no problems.
    statistics: Names of the layer statistics to observe; None = `DEFAULT_STATISTICS`, for which no mask is scored.
    suite: Folder of a suite, see `python -m benchmarks.make_suite`; None = the bundled one.
    budgets: Kinds of budgets, one or several of `count`, `macs`, `latency`, `parameters` and `memory`. Problems of the last
        three come last, so that the others keep their numbers; they need tables with these costs, such as the bundled ones.
    problems: Draw from a random subset of this many problems; None = all.
    problems_seed: Chooses them.
    render_mode: `ansi`, `rgb_array` (all images of a split have one size) or None.

    ## Vectorized environment
    `gymnasium.make_vec(id, num_envs=n)` takes all n steps with a few look-ups.

    ## References
    DAS: arXiv 2309.01479. Splits of problems as in Procgen, arXiv 1912.01588.
    """

    def __init__(
        self,
        split: str = "train",
        action: str = "mask",
        flat: bool = False,
        reward: str = "exp_neg_loss",
        statistics: str | Iterable[str] | None = None,
        suite: str | None = None,
        problems: int | None = None,
        problems_seed: int = 0,
        budgets: str | Iterable[str] = DEFAULT_BUDGETS,
        render_mode: str | None = None,
        **others: Any,
    ) -> None:
        signatures = [inspect.signature(cls).parameters for cls in (type(self), SuiteEnv)]
        check_arguments(others, [name for parameters in signatures for name in parameters if name != "others"])
        self.suite = load_suite(suite, split, reward, statistics, problems_seed, budgets, problems)
        super().__init__(SuiteEpisodes(self.suite, action, flat, 1), render_mode)

    @property
    def problem_names(self) -> tuple[str, ...]:
        """Names of all problems of the split, by number."""
        return tuple(problem.name for problem in self.suite.problems)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The name of each entry of an observation, of the parts of a `Dict` one after another: `unit.3/savings`."""
        return cast(SuiteEpisodes, self.episodes).feature_names


class SuiteVectorEnv(MaskVectorEnv, VectorEnv[Any, Any, Any]):
    """`num_envs` copies of `SuiteEnv` side by side, each on its problem; see `MaskVectorEnv`.

    `reset(options={"problem": [...]})` names the problems of all.
    """

    env_class = SuiteEnv
    suite = property(attrgetter("template.suite"), doc="The problems.")
    feature_names = property(attrgetter("template.feature_names"), doc="What each entry of an observation is.")

    @property
    def problems(self) -> np.ndarray:
        """(num_envs,) int64: the problem that each is on now; `info["problem"]` is that of the step's episode."""
        return self.episodes.which.copy()  # type: ignore[attr-defined]


class SuiteSearchEnv(SuiteEnv, gymnasium.Env[Any, Any]):
    """Search a problem drawn from a suite: each action is a mask, and masks and rewards so far are observed.

    ## Description
    As `SuiteEnv`, but an episode has `evaluations` masks, and what counts is the best of them.

    ## Action Space
    `action="scores"`: `Box(-1, 1, (16,))`, units are skipped from the highest score down until the budget is kept;
    `action="mask"`: `MultiBinary(16)`, 1 = skip.

    ## Observation Space
    As `SuiteEnv`'s, and of the masks so far, in their order, 0 for those to come: `masks` (evaluations x 16), `rewards`
    (evaluations, scaled, -1 for one off its budget), `scored` (evaluations: 1 for those so far), `best` (1).

    ## Rewards
    By how much a mask is better than the best before it, scaled as in `SuiteEnv`; the best before the first is 0, the
    random mean. So an episode earns 0..1, and 1 if it finds the optimum.

    ## Episode End
    After `evaluations` masks.

    ## Information
    As `SuiteEnv`'s, of the last mask, its `scaled_reward`, `best` and `evaluations`.

    ## Arguments
    evaluations: Masks an episode, 1 to 65,536.
    The others are `SuiteEnv`'s.
    """

    def __init__(self, evaluations: int = 30, action: str = "scores", **settings: Any) -> None:
        if action == "sequence":
            raise ValueError(
                "`action` is not supported: got 'sequence', expected 'scores' or 'mask', which make complete masks"
            )
        if not is_whole(evaluations) or not 1 <= evaluations <= 2**MAX_UNITS:
            raise ValueError(
                f"`evaluations` is out of range: got {evaluations!r}, expected an integer from 1 to {2**MAX_UNITS}"
            )
        super().__init__(action=action, **settings)
        self.evaluations = evaluations
        parts = {
            "masks": spaces.Box(0.0, 1.0, (evaluations * MAX_UNITS,), np.float32),
            "rewards": spaces.Box(-1.0, 1.0, (evaluations,), np.float32),
            "scored": spaces.Box(0.0, 1.0, (evaluations,), np.float32),
            "best": spaces.Box(0.0, 1.0, (1,), np.float32),
        }
        known: Any = self.observation_space
        flat = not isinstance(known, spaces.Dict)
        self.observation_space = joined({"known": known, **parts}) if flat else spaces.Dict({**known.spaces, **parts})
        self._history = {name: np.zeros(box.shape, np.float32) for name, box in parts.items()}
        self._count = 0

    @property
    def feature_names(self) -> tuple[str, ...]:
        """As `SuiteEnv`'s, then those of the masks so far: `mask.0/unit.3`, `reward.0`, `scored.0`, ..., `best`."""
        places = range(self.evaluations)
        masks = (f"mask.{place}/unit.{unit}" for place in places for unit in range(MAX_UNITS))
        numbers = (f"{name}.{place}" for name in ("reward", "scored") for place in places)
        return (*super().feature_names, *masks, *numbers, "best")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draw a problem, or take the one in `options`."""
        self._count = 0
        for values in self._history.values():
            values[:] = 0
        _, info = super().reset(seed=seed, options=options)
        return self._observation(), info | self._progress()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Score a mask."""
        moves = self.episodes.step(action)
        rewards, info = self.episodes.score(moves, self.np_random)
        place = self._count
        self._count += 1
        ended = self._count == self.evaluations
        # To its action mode every mask ends an episode; here the last one does.
        self.mode.over[:] = ended
        scaled = float(np.clip(rewards[0], -1.0, 1.0))
        history = self._history
        history["masks"][place * MAX_UNITS : self._count * MAX_UNITS] = moves.masks[0]
        history["rewards"][place] = scaled
        history["scored"][place] = 1.0
        gain = max(scaled - float(history["best"][0]), 0.0)
        history["best"][0] = max(scaled, float(history["best"][0]))
        told = first_row(info) | {"scaled_reward": scaled} | self._progress()
        self._last = LastStep(moves.masks[0], gain, told, ended=True)
        return self._observation(), gain, ended, False, told

    def _progress(self) -> dict[str, Any]:
        return {"best": float(self._history["best"][0]), "evaluations": self._count}

    def _observation(self) -> Any:
        known = self.episodes.observe_one()
        if not isinstance(known, dict):
            return np.concatenate((known, *self._history.values()))
        return known | {name: values.copy() for name, values in self._history.items()}
