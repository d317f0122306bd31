"""The environments of many problems: every episode draws one, so that the observation matters; or is a search of one."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from operator import attrgetter
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from das_gym.drawing.architecture import Architecture, LastStep, View, height_of
from das_gym.envs.actions import Moves, find_action_mode
from das_gym.envs.episodes import Episodes, MaskEnv, MaskVectorEnv
from das_gym.envs.scoring import first_row
from das_gym.names import check_arguments, check_names
from das_gym.problem.budget import SAVED, Masks, is_whole
from das_gym.problem.statistics import STATISTICS
from das_gym.tables.suite import DEFAULT_BUDGETS, MAX_UNITS, Suite, load_suite

MAX_EVALUATIONS = 65_536


class SuiteEpisodes(Episodes):
    """m episodes, each on its own problem.

    Its action mode uses it as the budget and the cost, since each episode has those of its problem.

    Attributes:
        mode: Turns actions into masks.
        which: (m,) int64, the problem of each episode.
        feature_names: Name of each entry of an observation, part by part, such as `unit.3/savings`.
        costs: Names of costs besides MACs, keys of `SAVED`, whose savings `info` has: those that budgets of the suite limit.
    """

    is_free = False
    range = (-1.0, 1.0)

    def __init__(self, suite: Suite, action: str, flat: bool, rows: int) -> None:
        self.suite = suite
        self.flat = flat
        self.which = np.zeros(rows, np.int64)
        self.costs = list(suite.other_costs)
        names = tuple(f"unit.{number}" for number in range(suite.max_units))
        itself = cast(Any, self)
        self.mode = find_action_mode(action)(names, itself, itself, rows)
        observed = [STATISTICS[name] for name in suite.statistics]
        low = np.tile(np.array([min(each.low, 0.0) for each in observed], np.float32), suite.max_units)  # 0 where no unit is
        high = np.tile(np.array([max(each.high, 0.0) for each in observed], np.float32), suite.max_units)
        parts = {
            "statistics": spaces.Box(low, high, dtype=np.float32),
            "units": spaces.Box(0.0, 1.0, (suite.max_units,), np.float32),
            "savings": spaces.Box(-1.0, 1.0, (suite.max_units,), np.float32),
            "budget": spaces.Box(0.0, 1.0, (2,), np.float32),
        }
        if action == "sequence":
            parts["skipped"] = spaces.Box(0.0, 1.0, (suite.max_units,), np.float32)
            parts["saved"] = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.observation_space = joined(parts) if flat else spaces.Dict(dict(parts))
        special = {
            "statistics": tuple(f"{unit}/{name}" for unit in names for name in suite.statistics),
            "budget": ("budget/units", "budget/cost"),
            "saved": ("saved",),
        }
        entries = [special.get(part, tuple(f"{unit}/{part}" for unit in names)) for part in parts]
        self.feature_names = tuple(name for part in entries for name in part)

    def copies(self, rows: int) -> SuiteEpisodes:
        return SuiteEpisodes(self.suite, self.mode.name, self.flat, rows)

    def reset(self, rng: np.random.Generator, seeded: bool, options: Any) -> None:
        """Draw a problem for each episode, or take `options={"problem": ...}`; ValueError for other options."""
        if not isinstance(options, Mapping | None):
            raise ValueError(f"`options` is not a dictionary: got {options!r}, expected {{'problem': 3}}, or None")
        check_names(options or {}, ("problem",), "option of reset")
        everyone = np.ones(len(self.which), bool)
        named = (options or {}).get("problem")
        if named is None:
            self.begin(everyone, rng)
            return
        several = isinstance(named, (list, tuple, np.ndarray))
        numbers = [self.suite.index(each) for each in (named if several else [named])]
        if len(numbers) not in (1, len(everyone)):
            raise ValueError(
                f"`options` names the wrong number of problems: got {len(numbers)}, expected 1 or {len(everyone)}"
            )
        self.place(everyone, numbers)

    def begin(self, which: np.ndarray, rng: np.random.Generator) -> None:
        count = int(np.count_nonzero(which))
        # a scalar is drawn several times faster than an array of one, and is the same number
        self.place(which, rng.integers(len(self.suite.problems), size=None if count == 1 else count))

    def place(self, which: np.ndarray, problems: Any) -> None:
        """Start episodes in (m,) bool rows on those problems, one number each."""
        self.which[which] = problems
        self.mode.begin(which)

    @property
    def useful_layers(self) -> Masks:
        """(m, max_units) bool: units that serve the budget of each problem."""
        return self.suite.useful[self.which]

    def is_feasible(self, masks: Masks) -> Masks:
        """Return (m,) bool: which masks satisfy the budgets."""
        return self.suite.kept[self.suite.rows(self.which, masks)]

    def skip_highest(self, scores: np.ndarray) -> Masks:
        return self.suite.skip_highest(self.which, scores)

    def saved(self, masks: Masks) -> np.ndarray:
        """Return (m,) float64: the share of the budget's own cost that skipping saves."""
        return self.suite.saved[self.suite.rows(self.which, masks)] - self.suite.saved_full[self.which]

    def observe(self) -> Any:
        parts: dict[str, np.ndarray] = {}
        if self.mode.name == "sequence":
            saved = self.saved(self.mode.masks)[:, None].astype(np.float32)
            parts = {"skipped": self.mode.masks.astype(np.float32), "saved": saved}
        if self.flat:
            return np.concatenate((self.suite.flat_observations[self.which], *parts.values()), axis=1)
        return {name: values[self.which] for name, values in self.suite.fixed_observations.items()} | parts

    def observe_one(self) -> Any:
        observed = self.observe()
        return observed[0] if self.flat else {name: values[0] for name, values in observed.items()}

    def step(self, actions: Any, batch: tuple[int, ...] = ()) -> Moves:
        """Take a step; units that the model does not have are never skipped. See `ActionMode.step`."""
        moves = self.mode.step(actions, batch)
        return moves._replace(masks=moves.masks & self.suite.units[self.which])

    def score(self, moves: Moves, rng: np.random.Generator | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        suite = self.suite
        rows = suite.rows(self.which, moves.masks)
        kept = suite.kept[rows]
        raw = suite.raw[rows]
        info = {
            "raw_reward": np.where(kept, raw, -np.inf),
            "regret": np.where(kept, suite.optima[self.which] - raw, np.inf),
            "loss": np.where(kept, suite.losses[rows], np.inf),
            "metric": np.where(kept, suite.metrics[rows], 0.0),
            "macs_saved": suite.saved_of("macs_saved")[rows],
            "n_skipped": moves.masks.sum(axis=1),
            "feasible": kept,
            **self.problem_info(),
        }
        info |= {name: suite.saved_of(name)[rows] for name in self.costs}
        # An episode ends as soon as its budget is kept: a mask within a sequence is off it, which `info` says already.
        return np.where(moves.ended, suite.scaled[rows], 0.0), info | moves.info

    def score_one(self, moves: Moves, rng: np.random.Generator) -> tuple[float, dict[str, Any]]:
        rewards, info = self.score(moves, rng)
        return float(rewards[0]), first_row(info)

    def add_savings_to_info(self, costs: Sequence[str]) -> list[tuple[float, float]]:
        saved = {name: self.suite.saved_of(name) for name in costs}
        for name, shares in saved.items():
            if np.isnan(shares).any():
                raise ValueError(f"`{name}` is not supported: a table of this suite lacks the {SAVED[name]}. Leave it out.")
        self.costs += [name for name in saved if name not in ("macs_saved", *self.costs)]
        return [(shares.min(), shares.max()) for shares in (self.suite.scaled, *saved.values())]

    def reference_reward(self) -> float:
        """Rewards of a suite are scaled: 0 = layers skipped in a random order."""
        return 0.0

    def problem_info(self) -> dict[str, np.ndarray]:
        """Return the `info` of the problems, each (m,)."""
        which = self.which
        return {"problem": which.copy(), "random_mean": self.suite.random_means[which], "optimum": self.suite.optima[which]}

    def reset_info(self) -> dict[str, np.ndarray]:
        masks = {"action_mask": self.mode.action_masks()} if self.mode.name == "sequence" else {}
        return self.problem_info() | masks

    def reset_info_one(self) -> dict[str, Any]:
        return first_row(self.reset_info())

    def last_step(self, mask: np.ndarray, reward: float, info: dict[str, Any], ended: bool) -> LastStep:
        """Return a step as `render` shows it: without units that the model does not have."""
        n = self.suite.problems[int(info["problem"])].table.n_layers
        return LastStep(mask[:n], reward, {"evaluations": int(np.isfinite(info["loss"])), **info}, ended)

    def view(self, last: LastStep | None, row: int) -> View:
        """Return what `render` shows of an episode; one that ended is shown until the next step."""
        if last is None and self.mode.ended[row]:
            raise gymnasium.error.ResetNeeded("no problem has been drawn: call reset() before render()")
        problem = self.suite.problems[int(self.which[row] if last is None else last.info["problem"])]
        return View(Architecture.from_table(problem.table), problem.budget.describe(), problem.name, self.height)

    @cached_property
    def height(self) -> int:
        """Largest height in pixels that a problem needs; all images have it."""
        tables = {id(problem.source): problem.table for problem in self.suite.problems}
        return max(height_of(Architecture.from_table(table)) for table in tables.values())


def joined(parts: Mapping[str, Any]) -> spaces.Box:
    """Return one flat Box of several, in their order."""
    low = np.concatenate([box.low for box in parts.values()])
    high = np.concatenate([box.high for box in parts.values()])
    return spaces.Box(low, high, dtype=np.float32)


class SuiteEnv(MaskEnv, gymnasium.Env[Any, Any]):
    """Which units to skip, on a problem drawn from a suite of hundreds.

    ## Description
    A problem is a model, a group of examples (all of a task's, or one type of questions) and a budget. `reset` draws one,
    with equal probability, and shows the layer statistics of the full model on these examples; the action chooses a mask;
    the reward compares it with all masks that satisfy the budget. `test` has models, tasks and a kind of model that `train`
    lacks.

    ## Action Space
    `action="mask"`: `MultiBinary(16)`, 1 = skip. `"sequence"`: `Discrete(16)`, one unit a step until the budget is kept,
    with `action_masks()` and `info["action_mask"]`; an action without effect stands for the next one that has.
    `"scores"`: `Box(-1, 1, (16,))`, units are skipped from the highest score down until the budget is kept. Units that the
    model does not have are never skipped, whatever the action. 16 is `max_units`, here and in observations.

    ## Observation Space
    A `Dict` of vectors, all float32; with `flat=True` one `Box` of them, in this order:
    `statistics` (16 x statistics, unit by unit, 0 where there is no unit), `units` (16: 1 where there is one), `savings`
    (16: share of the cost that skipping it saves), `budget` (2: share of the units to skip, or 0; share of the cost to
    save, or 0); and with `action="sequence"` `skipped` (16) and `saved` (1: share of the cost saved so far). The cost is
    the one that the budget limits, such as MACs or measured latency; for `skip_num` it is MACs. `feature_names` names the
    entries of all parts in this order.

    ## Rewards
    Scaled for each problem: 0 is the mean reward of skipping units in a random order, 1 the reward of the best mask, and -1
    the lowest reward within the budget. A mask outside the budget has -1 minus the share by which it misses it (0..1).

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
    reward: The reward that is scaled, see `das_gym.problem.rewards.REWARDS`. Tables hold divergences as means over all
        examples, so with `neg_kl` there are no problems of groups.
    statistics: Names of the layer statistics to observe; None = `DEFAULT_STATISTICS`, for which no mask is scored.
    suite: Folder of a suite, see `python -m benchmarks.make_suite`; None = the bundled one.
    budgets: Kinds of budgets, one or several of `count`, `macs`, `latency`, `parameters` and `memory`. Problems of the last
        three come last, so that the others keep their numbers; they need tables with these costs, such as the bundled ones.
    max_units: Number of units to which actions and observations are padded; models with more are left out. 30 adds the
        pretrained SmolLM2-135M and SmolVLM-135M to `test`, with three of 30 layers to skip.
    problems: Size of a random subset of the problems to draw from; None = all.
    problems_seed: Seed of this subset.
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
        max_units: int = MAX_UNITS,
        render_mode: str | None = None,
        **others: Any,
    ) -> None:
        signatures = [inspect.signature(cls).parameters for cls in (type(self), SuiteEnv)]
        check_arguments(others, [name for parameters in signatures for name in parameters if name != "others"])
        self.suite = load_suite(suite, split, reward, statistics, problems_seed, budgets, problems, max_units)
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
    As `SuiteEnv`, but an episode has `evaluations` masks, of which the best counts.

    ## Action Space
    `action="scores"`: `Box(-1, 1, (16,))`, units are skipped from the highest score down until the budget is kept;
    `action="mask"`: `MultiBinary(16)`, 1 = skip.

    ## Observation Space
    As `SuiteEnv`'s, followed by the masks so far in order, 0 for later ones: `masks` (evaluations x 16), `rewards`
    (evaluations, scaled, -1 outside the budget), `scored` (evaluations: 1 for masks so far), `best` (1).

    ## Rewards
    The improvement over the best reward so far, scaled as in `SuiteEnv`; before the first mask, the best reward is 0, the
    random mean. The rewards of an episode add up to 0..1, and to 1 if it finds the optimum.

    ## Episode End
    After `evaluations` masks.

    ## Information
    As `SuiteEnv`'s, of the last mask, its `scaled_reward`, `best` and `evaluations`.

    ## Arguments
    evaluations: Number of masks per episode, 1 to 65,536.
    Other arguments are those of `SuiteEnv`.
    """

    def __init__(self, evaluations: int = 30, action: str = "scores", **settings: Any) -> None:
        if action == "sequence":
            raise ValueError(
                "`action` is not supported: got 'sequence', expected 'scores' or 'mask', which make complete masks"
            )
        if not is_whole(evaluations) or not 1 <= evaluations <= MAX_EVALUATIONS:
            raise ValueError(
                f"`evaluations` is out of range: got {evaluations!r}, expected an integer from 1 to {MAX_EVALUATIONS}"
            )
        super().__init__(action=action, **settings)
        self.evaluations = evaluations
        parts = {
            "masks": spaces.Box(0.0, 1.0, (evaluations * self.suite.max_units,), np.float32),
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
        masks = (f"mask.{place}/unit.{unit}" for place in places for unit in range(self.suite.max_units))
        numbers = (f"{name}.{place}" for name in ("reward", "scored") for place in places)
        return (*super().feature_names, *masks, *numbers, "best")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._count = 0
        for values in self._history.values():
            values[:] = 0
        _, info = super().reset(seed=seed, options=options)
        return self._observation(), info | self._progress()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        moves = self.episodes.step(action)
        rewards, info = self.episodes.score(moves, self.np_random)
        place = self._count
        self._count += 1
        ended = self._count == self.evaluations
        # To its action mode every mask ends an episode; here the last one does.
        self.mode.ended[:] = ended
        scaled = float(np.clip(rewards[0], -1.0, 1.0))
        history = self._history
        history["masks"].reshape(self.evaluations, -1)[place] = moves.masks[0]
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
