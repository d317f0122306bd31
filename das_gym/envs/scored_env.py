"""The base of the environments with one problem, whatever the source of their scores."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Self

from das_gym.envs.episodes import Episodes, MaskEnv
from das_gym.envs.scoring import Scorer


class ScoredEnv(MaskEnv):
    """An environment around a scorer. A subclass makes the scorer; `SkipEnv` documents the environment.

    Args:
        scorer: Scores masks.
        action: A name in `das_gym.envs.actions.ACTION_MODES`.
        render_mode: `ansi`, `rgb_array` or None.
    """

    n_layers = property(attrgetter("scorer.n_layers"), doc="How many layers can be skipped.")
    layer_names = property(attrgetter("scorer.layer_names"), doc="Names of the layers, in mask order.")
    skip_num = property(attrgetter("scorer.budget.skip_num"), doc="How many layers are to be skipped, or None.")
    budget = property(attrgetter("scorer.budget"), doc="The constraint on a mask.")
    macs_full = property(attrgetter("scorer.macs.full"), doc="MACs of one example through the model without adapters.")

    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Store the arguments, from which unpickling makes the environment again."""
        env = super().__new__(cls)
        env._arguments = args, kwargs
        return env

    def __init__(self, scorer: Scorer, action: str, render_mode: str | None) -> None:
        self.scorer = scorer
        super().__init__(Episodes(scorer, action), render_mode)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the observation's entries: `<layer>/<statistic>`, then those of the action space."""
        return self.scorer.feature_names + self.mode.feature_names

    def close(self) -> None:
        """Stop the workers, if there are any; they start again when the environment is used again."""
        super().close()
        self.scorer.close()

    def __getstate__(self) -> dict[str, Any]:
        """Return arguments and state: the model is loaded again, from the process-wide cache if possible.

        Gymnasium's EzPickle keeps the arguments only, and would lose generator, examples and a running episode.
        """
        args, kwargs = self._arguments
        costs = {name: cost.as_dict() for name, cost in self.scorer.reported.items() if name != "macs_saved"}
        return {
            "arguments": (args, {**kwargs, "costs": costs} if costs else kwargs),  # so that a copy measures nothing again
            "state": self.get_state(),
            "spec": self.spec,
            "last": self._last,
            # Spaces have their own generators, whose state a copy needs.
            "action_space": self.action_space,
            "observation_space": self.observation_space,
        }

    def __setstate__(self, pickled: dict[str, Any]) -> None:
        self._arguments = args, kwargs = pickled["arguments"]
        self.__init__(*args, **kwargs)  # type: ignore[misc]
        self.set_state(pickled["state"])
        self.spec, self._last = pickled["spec"], pickled["last"]
        self.action_space = self.mode.space = pickled["action_space"]
        self.observation_space = pickled["observation_space"]

    def get_state(self) -> dict[str, Any]:
        """Return the environment's state as JSON values, also within an episode. `set_state` continues exactly there."""
        state = {"rng": self.np_random.bit_generator.state, "episode": self.mode.get_state()}
        return {**self.scorer.get_state(), **state}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned."""
        self.scorer.set_state(state)
        self.np_random.bit_generator.state = state["rng"]
        self.mode.set_state(state["episode"])
