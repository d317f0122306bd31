"""The environment of DAS: choose which layers of a frozen vision-language model to skip."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from das_gym.envs.scoring import MaskScorer
from das_gym.problem import ProblemConfig, load_problem
from das_gym.statistics import STATISTICS


class SkipEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """Which layers can this task do without?

    ## Description
    A frozen vision-language model has `n_layers` skippable layers, and a skip adapter that can stand in
    for each. An episode is one step: the agent sees layer statistics of the full model, names the
    layers to skip, and is rewarded by how well the subnet does on the reward split.

    ## Action Space
    `MultiBinary(n_layers)`: a skip mask, 1 = skipped. METER: 0-5 text fusion layers, 6-11 image fusion layers.
    A wrong shape or a value other than 0 and 1 raises a ValueError.

    ## Observation Space
    `Box((n_layers * n_statistics,), float32)` with finite bounds: the layer statistics of the unskipped
    model, layer by layer; `feature_names` says which entry is what. It is the same at every reset.

    ## Rewards
    By name, `exp(-loss)` by default, from the loss of the subnet on the reward split in eval mode. A mask that
    breaks the budget is not evaluated: it earns the lowest reward minus the share of layers by which it
    misses (so between -1 and 0 for the default), its loss counts as inf and its metric as 0.

    ## Starting State
    The layer statistics. `info` tells of the unskipped model.

    ## Episode End
    Every step terminates; nothing is ever truncated.

    ## Information
    `info` always holds, as plain numbers: `loss` (nats), `metric` (0..1), `macs` (of one example), `macs_saved`
    (share of the MACs of the model without adapters), `n_skipped`, `feasible`, and `evaluations` (masks scored so far).

    ## Arguments
    See `Args`. Attributes behind wrappers are reached with `env.get_wrapper_attr("feature_names")`.

    ## Vectorized environment
    `gymnasium.make_vec(id, num_envs=n)` scores n masks on the same examples in one engine call.

    ## References
    DAS: arXiv 2309.01479.

    ## Version History
    v0: first.

    Args:
        skip_num: Exactly how many layers to skip; None allows any number.
        reward: Name of the reward, see `das_gym.rewards.REWARDS`.
        statistics: Names of the statistics to observe, see `das_gym.statistics.STATISTICS`; None observes all.
        reward_examples: Examples that score a mask.
        reward_batches: Which examples a step uses: `fixed` (always the same), `cycle` (the next ones, around
            the reward split) or `resample` (drawn anew from `np_random`).
        size: `mini` or `base`; None follows the checkpoint.
        checkpoint: Path of pre-trained weights; None is the bundled METER-mini.
        supernet: Path of a supernet; None is the bundled one.
        data_root: Folder in VQAv2's format; None is the bundled Shapes data.
        tokenizer: Folder of the checkpoint's tokenizer, where it is not beside the checkpoint.
        device: `auto`, `cpu`, `cuda`, ...
        render_mode: `ansi` or None.

    Raises:
        ValueError: a setting that is not allowed; the text says what is.
        FileNotFoundError: a path that does not exist.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 - as in gymnasium.Env

    def __init__(
        self,
        skip_num: int | None = 4,
        reward: str = "exp_neg_loss",
        statistics: Iterable[str] | None = None,
        reward_examples: int = 500,
        reward_batches: str = "fixed",
        size: str | None = None,
        checkpoint: str | None = None,
        supernet: str | None = None,
        data_root: str | None = None,
        tokenizer: str | None = None,
        device: str = "auto",
        render_mode: str | None = None,
    ) -> None:
        statistics = tuple(STATISTICS if statistics is None else statistics)
        self._arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        config = ProblemConfig(
            size=size, checkpoint=checkpoint, supernet=supernet, data_root=data_root, tokenizer=tokenizer, device=device
        )
        self.scorer = MaskScorer(load_problem(config), skip_num, reward, statistics, reward_examples, reward_batches)
        self.render_mode = render_mode
        low, high = self.scorer.bounds()
        self.observation_space = spaces.Box(low, high, dtype=np.float32)
        self.action_space = spaces.MultiBinary(self.n_layers)
        self._last: tuple[np.ndarray, float, dict[str, Any]] | None = None

    @property
    def n_layers(self) -> int:
        """How many layers can be skipped."""
        return len(self.layer_names)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers, in mask order."""
        return self.scorer.problem.layer_names

    @property
    def feature_names(self) -> tuple[str, ...]:
        """What each entry of the observation is: `<layer>/<statistic>`."""
        return self.scorer.feature_names

    @property
    def skip_num(self) -> int | None:
        """The budget."""
        return self.scorer.budget.skip_num

    @property
    def macs_full(self) -> int:
        """MACs of one example through the model without adapters: what savings refer to."""
        return self.scorer.problem.costs.macs_full

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Layer statistics, and the `info` of the unskipped model; a seed also restarts the reward examples."""
        super().reset(seed=seed)
        if seed is not None:
            self.scorer.position = 0
        self._last = None
        return self.scorer.observation(), self.scorer.unskipped().row(0)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Score one skip mask; the episode ends."""
        mask = self.scorer.check(action, (self.n_layers,))
        scored = self.scorer.score(mask[None], self.np_random)
        reward, info = float(scored.rewards[0]), scored.row(0)
        self._last = (mask, reward, info)
        return self.scorer.observation(), reward, True, False, info

    def render(self) -> str | None:
        """The last mask in words, for `render_mode="ansi"`."""
        if self.render_mode != "ansi":
            return None
        if self._last is None:
            return f"{self.n_layers} layers, none chosen yet\n"
        return self.describe(*self._last)

    def describe(self, mask: np.ndarray, reward: float, info: dict[str, Any]) -> str:
        """One line on a scored mask."""
        skipped = ", ".join(name for name, bit in zip(self.layer_names, mask, strict=True) if bit) or "nothing"
        return (
            f"skipped {skipped}: reward {reward:.4f}, loss {info['loss']:.4f}, MACs saved {100 * info['macs_saved']:.1f} %\n"
        )

    def __getstate__(self) -> dict[str, Any]:
        """Arguments and state: the model is loaded again, from the process-wide cache if it is there."""
        return {"arguments": self._arguments, "state": self.get_state(), "spec": self.spec, "last": self._last}

    def __setstate__(self, pickled: dict[str, Any]) -> None:
        self.__init__(**pickled["arguments"])  # type: ignore[misc]
        self.set_state(pickled["state"])
        self.spec, self._last = pickled["spec"], pickled["last"]

    def get_state(self) -> dict[str, Any]:
        """What the next rewards depend on, JSON-able; give it to `set_state` to go on exactly from here."""
        return {
            "position": self.scorer.position,
            "evaluations": self.scorer.evaluations,
            "rng": self.np_random.bit_generator.state,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from where `get_state` was called."""
        self.scorer.position = state["position"]
        self.scorer.evaluations = state["evaluations"]
        self.np_random.bit_generator.state = state["rng"]
