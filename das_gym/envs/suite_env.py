"""The environments of many problems: every episode draws a problem, so that the observation matters."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium
import numpy as np

from das_gym.config import check_arguments, check_names
from das_gym.envs.actions import ActionMode, Moves
from das_gym.envs.rendering import RENDER_MODES, LastStep, View, check_render_mode, render
from das_gym.envs.scored_env import first_row
from das_gym.envs.suite_episodes import SuiteEpisodes
from das_gym.envs.vector_env import MaskVectorEnv, with_presence
from das_gym.tables.suite import DEFAULT_BUDGETS, load_suite


class SuiteEnv(gymnasium.Env[Any, Any]):
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
    the one that the budget limits, such as MACs or measured latency; for `skip_num` it is MACs.

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
    statistics: Names of the layer statistics to observe; None = all that the tables hold.
    suite: Folder of a suite, see `python -m benchmarks.make_suite`; None = the bundled one.
    budgets: Kinds of budgets, one or several of `count`, `macs`, `latency`, `parameters` and `memory`. Problems of the last
        three come last, so that the others keep their numbers; they need tables with these costs, such as the bundled ones.
    problems: Draw from a random subset of this many problems; None = all.
    relatives: For each model, how many others to add that lack one to three of its units.
    problems_seed: Chooses both.
    render_mode: `ansi`, `rgb_array` (all images of a split have one size) or None.

    ## Vectorized environment
    `gymnasium.make_vec(id, num_envs=n)` takes all n steps with a few look-ups.

    ## References
    DAS: arXiv 2309.01479. Splits of problems as in Procgen, arXiv 1912.01588.

    ## Version History
    v0: first.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 2}  # noqa: RUF012 - as in gymnasium.Env

    def __init__(
        self,
        split: str = "train",
        action: str = "mask",
        flat: bool = False,
        reward: str = "exp_neg_loss",
        statistics: str | Iterable[str] | None = None,
        suite: str | None = None,
        problems: int | None = None,
        relatives: int = 0,
        problems_seed: int = 0,
        budgets: str | Iterable[str] = DEFAULT_BUDGETS,
        render_mode: str | None = None,
        **others: Any,
    ) -> None:
        signatures = [inspect.signature(cls).parameters for cls in (type(self), SuiteEnv)]
        check_arguments(others, [name for parameters in signatures for name in parameters if name != "others"])
        check_render_mode(render_mode)
        self.suite = load_suite(suite, split, reward, statistics, relatives, problems_seed, budgets, problems)
        self.episodes = SuiteEpisodes(self.suite, action, flat, 1)
        self.observation_space = self.episodes.observation_space
        self.action_space = self.episodes.mode.space
        self.render_mode = render_mode
        self._last: LastStep | None = None

    @property
    def problem_names(self) -> tuple[str, ...]:
        """Names of all problems of the split, by number."""
        return tuple(problem.name for problem in self.suite.problems)

    @property
    def last_mask(self) -> np.ndarray | None:
        """(n_units,) bool: what the last step skipped, of the units that the model has; None right after a reset."""
        return None if self._last is None else self._last.mask.copy()

    def action_masks(self) -> np.ndarray:
        """Return (n_choices,) bool: actions that have an effect now, as MaskablePPO reads them."""
        return self.episodes.mode.action_masks()[0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draw a problem, or take the one in `options`, and observe it."""
        super().reset(seed=seed)
        named = named_problem(options)
        chosen = self.np_random.integers(len(self.suite.problems)) if named is None else self.suite.index(named)
        self.episodes.begin(np.ones(1, bool), chosen)
        self._last = None
        return self._observation(), first_row(self.episodes.reset_info())

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action; a complete mask is scored."""
        moves = self.episodes.step(action, ())
        rewards, arrays = self.episodes.score(moves)
        reward, ended, info = float(rewards[0]), bool(moves.ended[0]), first_row(arrays)
        self._last = self.episodes.last_step(moves.masks[0], reward, info, ended)
        return self._observation(), reward, ended, False, info

    def view(self) -> View:
        """Return what `render` shows besides the last step."""
        return self.episodes.view(self._last, 0)

    def render(self) -> Any:
        """Return the problem under the last mask; see `das_gym.envs.rendering.render`."""
        if self.render_mode is None:
            return None
        if self._last is None and self.episodes.mode.over[0]:
            raise gymnasium.error.ResetNeeded("no problem has been drawn: call reset() before render()")
        return render(self.render_mode, self.view(), self._last)

    def _observation(self) -> Any:
        observed = self.episodes.observe()
        return observed[0] if self.episodes.flat else {name: values[0] for name, values in observed.items()}


class SuiteVectorEnv(MaskVectorEnv):
    """`num_envs` copies of `SuiteEnv` side by side, each on its problem; see `MaskVectorEnv`."""

    env_class = SuiteEnv
    reset_keys = frozenset(("problem", "random_mean", "optimum", "action_mask"))
    template: SuiteEnv

    def _make_mode(self) -> ActionMode:
        alone = self.template.episodes
        self.suite = self.template.suite
        self.episodes = SuiteEpisodes(self.suite, alone.mode.name, alone.flat, self.num_envs)
        return self.episodes.mode

    @property
    def problems(self) -> np.ndarray:
        """(num_envs,) int64: the problem that each is on now; `info["problem"]` is that of the step's episode."""
        return self.episodes.which.copy()

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Draw a problem for each; of a list of seeds the first counts. `options={"problem": [...]}` names them all."""
        super().reset(seed=self._first_seed(seed))
        everyone = np.ones(self.num_envs, bool)
        named = named_problem(options)
        if named is None:
            self._begin(everyone)
        else:
            numbers = [
                self.suite.index(each) for each in (named if isinstance(named, (list, tuple, np.ndarray)) else [named])
            ]
            if len(numbers) not in (1, self.num_envs):
                raise ValueError(
                    f"`options` names the wrong number of problems: got {len(numbers)}, expected 1 or {self.num_envs}"
                )
            self.episodes.begin(everyone, numbers)
        self._waiting[:] = False
        self._last = None
        return self._observe(), with_presence(self.episodes.reset_info(), everyone)

    def _begin(self, which: np.ndarray) -> None:
        self.episodes.begin(which, self.np_random.integers(len(self.suite.problems), size=int(which.sum())))

    def _step_mode(self, actions: Any) -> Moves:
        return self.episodes.step(actions, (self.num_envs,))

    def _score(self, moves: Moves, restarted: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        rewards, info = self.episodes.score(moves)
        if restarted.any():  # as Gymnasium's own vector environments fill what a row does not have
            for key in info.keys() - self.reset_keys:
                info[key] = np.where(restarted, np.zeros_like(info[key]), info[key])
        return rewards, info

    def _observe(self) -> Any:
        return self.episodes.observe()

    def _last_step(self, row: int) -> LastStep | None:
        last = super()._last_step(row)
        return last and self.episodes.last_step(*last)

    def _view(self, last: LastStep | None, index: int) -> View:
        return self.episodes.view(last, index)


def named_problem(options: Any) -> Any:
    """Return the problem, or problems, that the options of `reset` name; None means to draw."""
    if options is not None and not isinstance(options, Mapping):
        raise ValueError(f'`options` is not a dictionary: got {options!r}, expected {{"problem": number or name}} or None')
    check_names(options or {}, ("problem",), "option of reset")
    return (options or {}).get("problem")
