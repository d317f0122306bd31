"""Masks that see the input: an episode is one example, whose hidden vectors a policy observes stage by stage."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from das_gym.commands.settings import build
from das_gym.drawing.architecture import Architecture, LastStep, render
from das_gym.engine.lockstep import LockstepRunner
from das_gym.envs.actions import ActionMode, Moves
from das_gym.envs.episodes import Episodes, MaskEnv, MaskVectorEnv, check_no_options
from das_gym.envs.scoring import Info, first_row
from das_gym.envs.skip_env import SkipEnv, SkipVectorEnv, check_problem
from das_gym.names import PARTS, check_arguments, check_names
from das_gym.problem.budget import Budget, is_non_negative
from das_gym.problem.config import ProblemConfig
from das_gym.problem.problem import Problem, load_problem
from das_gym.registration import DEFAULT_MODEL, DEFAULT_TASK

ACTIONS = ("mask", "discrete")
ORDERS = ("shuffle", "cycle")

MAX_LOSS = 100.0
"""The loss, in nats, that the reward counts for one that is larger or not finite: returns stay finite."""


class StageMode(ActionMode):
    """The units of one stage a step: `MultiBinary(units)`, 1 = skipped, or with `discrete` the number that these bits make.

    All episodes are at the same stage. Where stages differ in size, a smaller one ignores the last entries.
    """

    name = "stages"

    def __init__(self, problem: Problem, action: str, rows: int) -> None:
        self.stages = problem.vlp.stages
        self.width = max(map(len, self.stages))
        self.is_discrete = action == "discrete"
        self.stage = 0
        super().__init__(problem.layer_names, Budget(len(problem.layer_names)), problem.costs.macs_cost, rows)

    def _make_space(self) -> spaces.Space[Any]:
        return spaces.Discrete(2**self.width) if self.is_discrete else spaces.MultiBinary(self.width)

    def begin(self, which: np.ndarray | None = None) -> None:
        super().begin()  # they end together
        self.stage = 0

    def step(self, actions: Any, batch: tuple[int, ...] = ()) -> Moves:
        bits = self._bits(np.asarray(actions), batch)
        self._check_running()
        units = list(self.stages[self.stage])
        self.masks[:, units] = bits[:, : len(units)]
        self.stage += 1
        self.ended[:] = self.stage == len(self.stages)
        return Moves(self.masks.copy(), self.ended.copy(), {})

    def _bits(self, array: np.ndarray, batch: tuple[int, ...]) -> np.ndarray:
        """Return (m, width) bool; bit 0 of a number is the stage's first unit."""
        shape = batch if self.is_discrete else (*batch, self.width)
        choices = 2**self.width if self.is_discrete else 2
        # policies of Stable-Baselines3 give the bits as floats
        if array.shape != shape or not np.isin(array, np.arange(choices)).all():
            got = f"{array.tolist()!r:.80} of shape {array.shape}"
            raise ValueError(f"`action` is not in the space: got {got}, expected integers 0..{choices - 1} of shape {shape}")
        bits = array[..., None].astype(np.int64) >> np.arange(self.width) & 1 if self.is_discrete else array
        return bits.astype(bool).reshape(self.rows, self.width)


class PerInputEpisodes(Episodes):
    """Episodes in lockstep: each is an example of a split, on its way through the stages; see `PerInputEnv`.

    Args:
        problem: Model, task and data.
        settings: `action`, `split`, `order`, `price`, `macs_saved` and `price_step` of `PerInputEnv`.
        rows: Number of episodes.
        sizes: Features of each stream; None measures them on one example.

    Attributes:
        price: What the reward loses for all MACs of the baseline, in nats.
        evaluations: Examples scored so far.
    """

    mode: StageMode

    def __init__(
        self, problem: Problem, settings: Mapping[str, Any], rows: int = 1, sizes: Mapping[str, int] | None = None
    ) -> None:
        self.problem = problem
        self.settings = settings
        self.examples = getattr(problem.splits, settings["split"])
        self.runner = LockstepRunner(problem.evaluator)
        self.mode = StageMode(problem, settings["action"], rows)
        self.cost = problem.costs.macs_cost
        kept = problem.costs.layer_macs + problem.costs.parallel_macs
        by_stage = [int(kept[list(units)].sum()) for units in self.mode.stages]
        self._undecided = np.cumsum([0, *by_stage[::-1]])[::-1]  # MACs of the stages from each on, if all is kept
        self._sizes = self._measure_sizes() if sizes is None else sizes
        self.observation_space = self._make_space()
        self.restart()

    def copies(self, rows: int) -> Episodes:
        return PerInputEpisodes(self.problem, self.settings, rows, self._sizes)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the observation's entries."""
        hidden = [
            f"{stream}/{part}/{i}"
            for stream, size in self._sizes.items()
            for part in ("mean", "token")
            for i in range(size // 2)
        ]
        return (*hidden, *(f"stage/{stage}" for stage in range(len(self.mode.stages))), "macs_so_far")

    def restart(self) -> None:
        """Start again with the first example and price, as a seed does."""
        self.price = float(self.settings["price"])
        self.evaluations = 0
        self._waiting = np.zeros(0, dtype=np.int64)
        self._chosen = np.zeros(self.mode.rows, dtype=np.int64)

    def reset(self, rng: np.random.Generator, seeded: bool, options: Any) -> None:
        check_no_options(options)
        if seeded:
            self.restart()
        self.begin(np.ones(self.mode.rows, dtype=bool), rng)

    def begin(self, which: np.ndarray, rng: np.random.Generator) -> None:
        """Start all episodes: they also end together."""
        while len(self._waiting) < self.mode.rows:
            shuffles = self.settings["order"] == "shuffle"
            more = rng.permutation(len(self.examples)) if shuffles else np.arange(len(self.examples))
            self._waiting = np.concatenate((self._waiting, more))
        self._chosen, self._waiting = np.split(self._waiting, [self.mode.rows])
        self._groups = np.array([self.problem.task.group(self.examples[i]) for i in self._chosen.tolist()])
        self.runner.start([self.examples[i] for i in self._chosen.tolist()])
        self.mode.begin()

    def step(self, actions: Any, batch: tuple[int, ...] = ()) -> Moves:
        moves = self.mode.step(actions, batch)
        self.runner.advance(moves.masks)
        return moves

    def score(self, moves: Moves, rng: np.random.Generator) -> tuple[np.ndarray, Info]:
        rewards = np.zeros(self.mode.rows)
        if not moves.ended.all():
            return rewards, self._info()
        losses, metrics = self.runner.scores()
        self.evaluations += len(losses)
        broken = ~np.isfinite(losses)
        losses[broken], metrics[broken] = np.inf, 0.0
        info = self._info() | {"loss": losses, "metric": metrics}
        rewards -= np.minimum(losses, MAX_LOSS) + self.price * info["macs_share"]
        if self.settings["macs_saved"] is not None:
            too_many = info["macs_share"] - (1 - self.settings["macs_saved"])
            self.price = max(0.0, self.price + self.settings["price_step"] * float(too_many.sum()))
        return rewards, info

    def score_one(self, moves: Moves, rng: np.random.Generator) -> tuple[float, dict[str, Any]]:
        rewards, info = self.score(moves, rng)
        return float(rewards[0]), first_row(info)

    def observe(self) -> Any:
        """Return (m, size) float32; after the last stage, all but the share of MACs is 0."""
        found = np.zeros((self.mode.rows, *self.observation_space.shape), dtype=np.float32)  # type: ignore[misc]
        stage = self.mode.stage
        hidden = sum(self._sizes.values())
        if stage < len(self.mode.stages):
            features = self.runner.features()
            start = 0
            for stream, size in self._sizes.items():
                if stream in features:
                    found[:, start : start + size] = features[stream]
                start += size
            found[:, hidden + stage] = 1.0
        found[:, -1] = (self.cost.amounts(self.mode.masks) - self._undecided[stage]) / self.cost.full
        return np.clip(found, self.observation_space.low, self.observation_space.high)  # type: ignore[attr-defined]

    def observe_one(self) -> Any:
        return self.observe()[0]

    def reset_info(self) -> Info:
        return self._info()

    def reset_info_one(self) -> dict[str, Any]:
        return first_row(self._info())

    def render(self, mode: str, last: LastStep | None) -> str | np.ndarray:
        architecture = Architecture.from_layers(self.problem.vlp.layers, self.cost)
        return render(mode, architecture, f"a price of {self.price:.3g} nats for all MACs", last)

    def _info(self) -> Info:
        """Return `info` without scores: units of later stages count as kept."""
        masks = self.mode.masks.copy()
        saved = self.cost.saved(masks)
        rows = len(masks)
        return {
            "mask": masks,
            "loss": np.full(rows, np.inf),
            "metric": np.zeros(rows),
            "macs_share": 1 - saved,
            "macs_saved": saved,
            "price": np.full(rows, self.price),
            "group": self._groups,
            "example": self._chosen,
            "evaluations": np.full(rows, self.evaluations),
        }

    def _measure_sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        self.runner.start([self.examples[0]])
        for _ in self.mode.stages:
            sizes |= {stream: features.shape[1] for stream, features in self.runner.features().items()}
            self.runner.advance(np.ones((1, len(self.cost.savings)), dtype=bool))
        return {stream: sizes[stream] for stream in self.runner.streams}

    def _make_space(self) -> spaces.Space[Any]:
        n_stages = len(self.mode.stages)
        # A vector of n numbers with mean 0 and variance 1 has none beyond the root of n.
        bounds = [np.full(size, np.sqrt(size / 2)) for size in self._sizes.values()]
        most = 1 - self.cost.range[0]
        high = np.concatenate([*bounds, np.ones(n_stages), [most]]).astype(np.float32)
        low = np.concatenate([*(-bound for bound in bounds), np.zeros(n_stages + 1)]).astype(np.float32)
        return spaces.Box(low, high, dtype=np.float32)


class PerInputEnv(MaskEnv, gymnasium.Env[Any, Any]):
    """Which layers can this example do without?

    ## Description
    In the other environments one mask serves all examples. Here an episode is one example of a split, and a step is one
    stage of the model: the agent observes the hidden vectors that enter the stage, and chooses which of its units to skip
    for this example. Hidden vectors depend on the example and on earlier actions.

    ## Action Space
    `action="mask"`: `MultiBinary(units of a stage)`, 1 = skipped: 2 for METER (text layer, image layer), 1 for ViLT and
    transformers models.
    `action="discrete"`: `Discrete(2 ** units)`, a number whose bit i is 1 if unit i of the stage is skipped.
    An action of another shape, or outside the space, raises a ValueError.

    ## Observation Space
    `Box(float32)` with finite bounds. For each stream (METER: text, image; ViLT and decoders: joint) the mean over its
    tokens, and the token that the head reads, each scaled to mean 0 and variance 1; 0 for a stream that does not exist at
    this stage. Then the stage, one-hot, and the MACs spent so far, as a share of the model without adapters. Pairs of one
    example are averaged. A decoder shows its prompt alone, mean and last token. `feature_names` names the entries.

    ## Rewards
    0 before the last stage, then -(loss + price * share), of the loss of this example in nats and the MACs of its mask as
    a share of the model without adapters. Discount by `gamma=1`. A loss above 100, or none, counts as 100.
    With `macs_saved`, the price is a multiplier: each episode adds `price_step` times its share of MACs minus
    `1 - macs_saved`, so that it rises until that much is saved on average. Episodes side by side share it.

    ## Starting State
    The vectors that enter the first stage, of the next example in `order`. A seed starts with a new order, and `price`.

    ## Episode End
    After the last stage. Nothing is truncated.

    ## Information
    `mask` (n_layers bool, later stages count as kept), `loss` (nats) and `metric` (0..1) of this example (inf and 0 before
    the end), `macs_share` and `macs_saved` of the mask (shares of the MACs of the model without adapters), `price`, `group`
    (the task's type of question, may be empty), `example` (its place in the split), `evaluations` (examples scored).
    MACs are those of `Problem.costs`, at the longest text of the data.

    ## Arguments
    See `Args`. For a decoder, the decisions that are made while the prompt is read hold for the answer's tokens.

    ## Vectorized environment
    `gymnasium.make_vec(id, num_envs=n)` walks n examples in lockstep: each unit runs once, on the rows that keep it.
    Transformers models run one example after another.

    ## References
    SkipNet: arXiv 1711.09485. BlockDrop: arXiv 1711.08393.

    ## Version History
    v0: first.

    Args:
        price: What the reward loses for all MACs of the model without adapters, in nats; the first one with `macs_saved`.
        macs_saved: Share of MACs to save on average, such as 0.34; None leaves the price as it is.
        price_step: Step of the multiplier for an episode, in nats.
        action: `mask` or `discrete`.
        split: Whose examples: `train`, `reward` or `test`.
        order: `shuffle`, drawn without replacement until all have been seen, or `cycle`, as they stand in the split.
        model: `METER`, `ViLT`, or another key of `das_gym.registration.MODELS`; the id sets it.
        task: `vqa`, `nlvr2`, `retrieval`, or another key of `das_gym.registration.TASKS`; the id sets it.
        render_mode: `ansi`, `rgb_array` or None; `gymnasium.make` takes `human`, too.
        problem: The problem, instead of `model`, `task` and their settings:
            `gymnasium.make("DAS-v0", problem=problem, per_input=True)`.
        settings: Model and data: the fields of `das_gym.problem.config.ProblemConfig`.

    Raises:
        ValueError: a setting that is not allowed.
        FileNotFoundError: a path that does not exist.

    Example:
        >>> import gymnasium
        >>> import das_gym
        >>> env = gymnasium.make("DAS-METER-VQA-PerInput-v0", price=0.5)
        >>> observation, info = env.reset(seed=0)
        >>> observation, reward, terminated, truncated, info = env.step([0, 1])
    """

    def __init__(
        self,
        price: float = 1.0,
        macs_saved: float | None = None,
        price_step: float = 0.01,
        action: str = "mask",
        split: str = "train",
        order: str = "shuffle",
        model: str = DEFAULT_MODEL,
        task: str = DEFAULT_TASK,
        render_mode: str | None = None,
        problem: Problem | None = None,
        **settings: Any,
    ) -> None:
        check_arguments(settings, [*inspect.signature(PerInputEnv).parameters, *ProblemConfig.__dataclass_fields__])
        for name, value, known in (("action", action, ACTIONS), ("split", split, PARTS), ("order", order, ORDERS)):
            check_names([value], known, name)
        for name, number in (("price", price), ("price_step", price_step)):
            if not is_non_negative(number):
                raise ValueError(f"`{name}` is out of range: got {number!r}, expected a finite number of at least 0")
        if problem is not None:
            check_problem(problem, settings)
        problem = problem or load_problem(build(ProblemConfig, {"model": model, "task": task, **settings}))
        problem.backbone.origin.check_unchanged()
        Budget(len(problem.layer_names), saved=macs_saved, cost=problem.costs.macs_cost)  # raises if it is out of reach
        given = {"price": price, "macs_saved": macs_saved, "price_step": price_step}
        super().__init__(PerInputEpisodes(problem, given | {"action": action, "split": split, "order": order}), render_mode)

    episodes: PerInputEpisodes
    problem = property(attrgetter("episodes.problem"), doc="Model, task and data.")
    price = property(attrgetter("episodes.price"), doc="What the next reward loses for all MACs, in nats.")
    feature_names = property(attrgetter("episodes.feature_names"), doc="Names of the observation's entries.")


class PerInputVectorEnv(MaskVectorEnv, VectorEnv[Any, Any, Any]):
    """`num_envs` examples of `PerInputEnv` in lockstep, under one price."""

    env_class = PerInputEnv
    episodes: PerInputEpisodes
    problem = property(attrgetter("episodes.problem"), doc="Model, task and data.")
    price = property(attrgetter("episodes.price"), doc="What the next reward loses for all MACs, in nats.")
    feature_names = property(attrgetter("episodes.feature_names"), doc="Names of the observation's entries.")


class LiveEnv(SkipEnv):
    """`DAS-v0`: the environment of a `Problem`, a `SkipEnv`, or with `per_input=True` a `PerInputEnv`."""

    def __new__(cls, *args: Any, per_input: bool = False, **kwargs: Any) -> Any:
        """Return the environment; Python calls `__init__` only for an instance of this class."""
        return PerInputEnv(*args, **kwargs) if per_input else super().__new__(cls, *args, **kwargs)

    def __init__(self, *args: Any, per_input: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class LiveVectorEnv(SkipVectorEnv):
    """Copies of `LiveEnv`."""

    def __new__(cls, *args: Any, per_input: bool = False, **kwargs: Any) -> Any:
        """Return the vector environment."""
        return PerInputVectorEnv(*args, **kwargs) if per_input else super().__new__(cls)

    def __init__(self, *args: Any, per_input: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
