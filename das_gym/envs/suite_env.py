"""The environments of many problems: every episode draws a problem, so that what is observed matters."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from das_gym.config import check_arguments, check_names
from das_gym.envs.rendering import RENDER_MODES, check_render_mode
from das_gym.envs.scored_env import check_vector, find_autoreset_mode, first_row, first_seed
from das_gym.envs.suite_episodes import SuiteEpisodes
from das_gym.envs.suite_rendering import Kept, SuiteScreen
from das_gym.problem.budget import is_whole
from das_gym.problem.statistics import check_statistics
from das_gym.tables.suite import DEFAULT_BUDGETS, Suite, load_suite


def _suite(
    split: str,
    reward: str,
    statistics: str | Iterable[str] | None,
    suite: str | None,
    problems: int | None,
    relatives: int,
    problems_seed: int,
    budgets: str | Iterable[str],
) -> Suite:
    names = None if statistics is None else tuple(statistic.name for statistic in check_statistics(statistics))
    if not is_whole(problems_seed) or problems_seed < 0:
        raise ValueError(f"problems_seed={problems_seed!r} is not allowed; use a whole number, 0 or more")
    whole = load_suite(suite, split, reward, names, relatives, problems_seed, budgets)
    if problems is None:
        return whole
    if not is_whole(problems) or not 1 <= problems <= len(whole.problems):
        raise ValueError(f"problems={problems!r}: this split has {len(whole.problems)}; use 1 to so many")
    order = np.random.default_rng(problems_seed).permutation(len(whole.problems))
    some = Suite((whole.problems[place] for place in order[:problems]), names)
    some.made_by = (_suite, (split, reward, statistics, suite, problems, relatives, problems_seed, budgets))
    return some


class SuiteEnv(gymnasium.Env[Any, Any]):
    """Which units to skip, on a problem drawn from a suite of hundreds.

    ## Description
    A problem is a model, a group of examples (all of a task's, or one type of questions) and a budget. `reset` draws one,
    each as likely, and shows what the unskipped model's units are like on these examples; the action chooses a mask; the
    reward says how good it is among all masks that keep the budget. A policy that ignores what it observes earns what the
    best fixed mask does; `test` has models, tasks and a kind of model that `train` has not.

    ## Action Space
    `action="mask"`: `MultiBinary(16)`, 1 = skip. `"sequence"`: `Discrete(16)`, one unit a step until the budget is kept,
    with `action_masks()` and `info["action_mask"]`; an action without effect stands for the next one that has.
    `"scores"`: `Box(-1, 1, (16,))`, units are skipped from the highest score down until the budget is kept. Units that the
    model does not have are never skipped, whatever the action says of them.

    ## Observation Space
    A `Dict` of vectors, all float32; with `flat=True` one `Box` of them, in this order:
    `statistics` (16 x statistics, unit by unit, 0 where there is no unit), `units` (16: 1 where there is one), `savings`
    (16: share of the cost that skipping it saves), `budget` (2: share of the units to skip, or 0; share of the cost to
    save, or 0); and with `action="sequence"` `skipped` (16) and `saved` (1: share of the cost saved so far). The cost is
    what the budget is about: MACs, or the latency that was measured of each unit; of a budget by count it is MACs.

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
    `action_mask`; where a problem of latency is among the environment's, `latency_saved`.

    ## Arguments
    split: `train`, `valid` or `test`.
    action, flat: As above.
    reward: What is scaled, see `das_gym.problem.rewards.REWARDS`. Tables hold divergences of all examples together alone, so
        that with `neg_kl` groups give no problems.
    statistics: Names of the layer statistics to observe; None = all that the tables hold.
    suite: Folder of a suite, see `python -m benchmarks.make_suite`; None = the bundled one.
    budgets: Kinds of budgets, `count`, `macs` and `latency`, one or several. Problems of latency come behind all others, so
        that those keep their numbers; they need tables that know the latency of units, as the bundled ones do.
    problems: Draw from so many of the split's problems alone; None = all.
    relatives: Besides every model so many others: what is left of it without one to three of its units.
    problems_seed: Chooses both.
    render_mode: `ansi`, `rgb_array` (the pictures of a split have one size) or None.

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
        if "autoreset_mode" in others:
            raise ValueError(
                "autoreset_mode is a setting of vector environments, and this one has no form of its own: "
                'make_vec(..., vectorization_mode="sync", vector_kwargs={"autoreset_mode": ...})'
            )
        check_arguments(others, _arguments(type(self)))
        check_render_mode(render_mode)
        self.suite = _suite(split, reward, statistics, suite, problems, relatives, problems_seed, budgets)
        self.episodes = SuiteEpisodes(self.suite, action, flat, 1)
        self.observation_space = self.episodes.observation_space
        self.action_space = self.episodes.action_space
        self.render_mode = render_mode
        self._screen = None if render_mode is None else SuiteScreen(self.episodes, render_mode)
        self._kept: Kept | None = None

    @property
    def problem_names(self) -> tuple[str, ...]:
        """Names of all problems of the split, by number."""
        return tuple(problem.name for problem in self.suite.problems)

    @property
    def last_mask(self) -> np.ndarray:
        """(16,) bool: what the episode has skipped so far."""
        return self.episodes.masks[0].copy()

    def action_masks(self) -> np.ndarray:
        """(n_choices,) bool: actions that have an effect now; what MaskablePPO reads."""
        return self.episodes.action_masks()[0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draw a problem, or take the one in `options`, and observe it.

        Raises:
            ValueError: other options than `problem`, or no such problem.
        """
        super().reset(seed=seed)
        given = _chosen(options)
        chosen = self.np_random.integers(len(self.suite.problems)) if given is None else self.suite.index(given)
        self.episodes.begin(np.zeros(1, np.int64), np.array([chosen]))
        self._kept = Kept(int(chosen), None)
        return self._observation(), first_row(self.episodes.told() | self.episodes.choices())

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action; a mask that is complete is scored."""
        rewards, ended, told = self.episodes.take(action, ())
        reward, over, info = float(rewards[0]), bool(ended[0]), first_row(told | self.episodes.choices())
        if self._screen is not None:
            self._kept = self._screen.keep(0, reward, info, over)
        return self._observation(), reward, over, False, info

    def render(self) -> Any:
        """The problem under the last mask; see `das_gym.envs.rendering.render`.

        Raises:
            gymnasium.error.ResetNeeded: no problem has been drawn.
        """
        if self._screen is None:
            return None
        if self._kept is None:
            raise gymnasium.error.ResetNeeded("no problem has been drawn: call reset() before render()")
        return self._screen.render(self._kept)

    def _observation(self) -> Any:
        observed = self.episodes.observe()
        return observed[0] if self.episodes.flat else {name: values[0] for name, values in observed.items()}


class SuiteVectorEnv(VectorEnv[Any, Any, Any]):
    """`num_envs` copies of `SuiteEnv` side by side, each on a problem of its own.

    Environments reset within the step (autoreset mode SAME_STEP): `final_obs` and `final_info` hold what an ended episode
    ended with; `info` holds the numbers of the step itself, `action_mask` alone those of the state after the reset.

    With `autoreset_mode=AutoresetMode.NEXT_STEP`, which Gymnasium's vector wrappers of observations want, an episode ends
    with its last observation, and the next step begins one on another problem in the place of its action: reward 0, `info`
    of a reset.

    Args:
        num_envs: How many.
        autoreset_mode: `AutoresetMode.SAME_STEP` or `AutoresetMode.NEXT_STEP`, or its value.
        **settings: `SuiteEnv`'s arguments. Pictures are of the last step, also of episodes that ended with it.

    Raises:
        ValueError: another autoreset mode, or what `SuiteEnv` refuses.
    """

    metadata = {**SuiteEnv.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 - as in gymnasium.Env

    def __init__(
        self, num_envs: int = 1, autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP, **settings: Any
    ) -> None:
        check_vector(num_envs, settings)
        mode = find_autoreset_mode(autoreset_mode)
        self.metadata, self.autoreset_mode = {**self.metadata, "autoreset_mode": mode}, mode
        self._at_once = mode is AutoresetMode.SAME_STEP
        self._waiting = np.zeros(num_envs, bool)
        template = SuiteEnv(**settings)
        self.num_envs, self.suite, self.render_mode = num_envs, template.suite, template.render_mode
        self.episodes = SuiteEpisodes(self.suite, template.episodes.action, template.episodes.flat, num_envs)
        self._screen = None if self.render_mode is None else SuiteScreen(self.episodes, self.render_mode)
        self._kept: list[Kept] = []
        self.single_observation_space = template.observation_space
        self.single_action_space = template.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    @property
    def last_masks(self) -> np.ndarray:
        """(num_envs, 16) bool: what each episode has skipped so far."""
        return self.episodes.masks.copy()

    @property
    def problems(self) -> np.ndarray:
        """(num_envs,) int64: the problem that each is on now; `info["problem"]` is that of the step's episode."""
        return self.episodes.which.copy()

    def action_masks(self) -> np.ndarray:
        """(num_envs, n_choices) bool: actions that have an effect now."""
        return self.episodes.action_masks()

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Draw a problem for each; of a list of seeds the first counts. `options={"problem": [...]}` names them all.

        Raises:
            ValueError: other options, no such problem, or another number of problems or seeds than of environments.
        """
        super().reset(seed=first_seed(seed, self.num_envs))
        given = _chosen(options)
        everyone = self.episodes.everyone
        if given is None:
            chosen = self._drawn(self.num_envs)
        else:
            several = isinstance(given, (list, tuple, np.ndarray))
            named = [self.suite.index(each) for each in (given if several else [given])]
            if len(named) not in (1, self.num_envs):
                raise ValueError(f"options name {len(named)} problems; name 1, or {self.num_envs}: one each")
            chosen = np.broadcast_to(named, self.num_envs)
        self.episodes.begin(everyone, chosen)
        self._kept = [Kept(number, None) for number in self.episodes.which.tolist()]
        self._waiting[:] = False
        told = self.episodes.told() | self.episodes.choices()
        return self.episodes.observe(), _present(told, np.ones(self.num_envs, bool))

    def _drawn(self, count: int) -> np.ndarray:
        return self.np_random.integers(len(self.suite.problems), size=count)

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take an action in each; those that end begin anew, on other problems."""
        begun, everyone = self._waiting, np.ones(self.num_envs, bool)
        if begun.any():
            self._begin(begun)
        rewards, ended, told = self.episodes.take(actions, (self.num_envs,))
        if begun.any():
            rewards, ended, told = self._without(begun, rewards, ended, told)
        if self._screen is not None:
            self._kept = self._shown(self._screen, rewards, ended, told, begun)
        final: dict[str, Any] = {}
        if not self._at_once:
            self._waiting = ended.copy()
        elif ended.any():
            final = self._final(told | self.episodes.choices(), ended)
            self._begin(ended)
        info = _present(told, ~begun) | _present(self.episodes.choices(), everyone) | final
        if begun.any():
            info |= {f"_{key}": everyone for key in self.episodes.told()}
        return self.episodes.observe(), rewards, ended, np.zeros(self.num_envs, bool), info

    def render(self) -> tuple[Any, ...] | None:
        """The problem of each episode under its last mask; one that ended is shown as it ended, until the next step."""
        if self._screen is None:
            return None
        return tuple(map(self._screen.render, self._kept))

    def _shown(
        self, screen: SuiteScreen, rewards: np.ndarray, ended: np.ndarray, told: dict[str, np.ndarray], begun: np.ndarray
    ) -> list[Kept]:
        """What is shown of a step in each; nothing was done yet in those that began with it."""
        rows = [{name: values[row] for name, values in told.items()} for row in range(self.num_envs)]
        each = zip(range(self.num_envs), rewards.tolist(), rows, ended.tolist(), strict=True)
        return [
            Kept(number, None) if new else screen.keep(*row)
            for number, row, new in zip(self.episodes.which.tolist(), each, begun.tolist(), strict=True)
        ]

    def _without(self, begun: np.ndarray, rewards: np.ndarray, ended: np.ndarray, told: dict[str, np.ndarray]) -> Any:
        """What a step came to, when episodes of (num_envs,) bool began with it, whatever their actions were."""
        self.episodes.begin(np.flatnonzero(begun), self.episodes.which[begun])
        told = {key: np.where(begun, np.zeros_like(values), values) for key, values in told.items()} | self.episodes.told()
        return np.where(begun, 0.0, rewards), ended & ~begun, told

    def _begin(self, which: np.ndarray) -> None:
        """Draw a problem for each of (num_envs,) bool."""
        places = np.flatnonzero(which)
        self.episodes.begin(places, self._drawn(len(places)))

    def _final(self, told: dict[str, np.ndarray], ended: np.ndarray) -> dict[str, Any]:
        """What Gymnasium's wrappers expect of environments that reset within the step."""
        observed, rows = self.episodes.observe(), np.flatnonzero(ended)
        found = np.full(self.num_envs, None, dtype=object)
        for row in rows.tolist():
            found[row] = observed[row] if self.episodes.flat else {name: part[row] for name, part in observed.items()}
        return {"final_obs": found, "_final_obs": ended, "final_info": _present(told, ended), "_final_info": ended}


def _chosen(options: Any) -> Any:
    """The problem, or problems, that the options of `reset` name; None = draw."""
    if options is not None and not isinstance(options, Mapping):
        raise ValueError(f'options={options!r}: give a dictionary, {{"problem": number or name}}, or None')
    check_names(options or {}, ("problem",), "option of reset")
    return (options or {}).get("problem")


def _arguments(kind: type[SuiteEnv]) -> list[str]:
    """Names of the arguments of an environment, those of `SuiteEnv` among them."""
    given = [each for cls in (kind, SuiteEnv) for each in inspect.signature(cls).parameters.values()]
    return list(dict.fromkeys(each.name for each in given if each.kind is not each.VAR_KEYWORD))


def _present(arrays: dict[str, np.ndarray], present: np.ndarray) -> dict[str, Any]:
    """Gymnasium's convention: beside each key, `_key` says which environments have it."""
    return arrays | {f"_{key}": present for key in arrays}
