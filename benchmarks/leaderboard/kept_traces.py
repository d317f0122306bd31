"""What a long comparison has played, kept on the disk, so that a stopped one goes on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.agents.compare.comparison import run_agent
from das_gym.agents.compare.oracle import Oracle
from das_gym.agents.compare.results import AgentResult

import das_gym
from das_gym.files import BAD_ARRAYS, read_arrays, replacing

ARRAYS = ("answers", "curves", "evaluations", "milliseconds")


class KeptTraces:
    """One file for all searches of an agent on a problem.

    Files are of a version of das_gym and of a problem with the same budget and the same rewards; whoever changes an agent
    takes another folder.

    Args:
        folder: Where they are; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def trace(
        self,
        oracle: Oracle,
        agent: str,
        seeds: Sequence[int],
        evaluations: int,
        masks_per_turn: int,
        agent_kwargs: Mapping[str, Any],
        play: Callable[..., AgentResult] = run_agent,
    ) -> AgentResult:
        """What is kept of an agent's searches; else what `play` finds, which is kept. As `run_agent`.

        Raises:
            ValueError: what `play` raises, or the file of these searches is damaged.
        """
        settings = (agent, seeds, evaluations, masks_per_turn, agent_kwargs)
        if self.folder is None:
            return play(oracle, *settings)
        path = self._path(oracle, *settings)
        if not path.exists():
            trace = play(oracle, *settings)
            with replacing(path) as part, part.open("wb") as file:
                np.savez(file, allow_pickle=False, **{name: getattr(trace, name) for name in ARRAYS})
            return trace
        try:
            arrays = read_arrays(path)
            _check(arrays, len(seeds), oracle.space.n_layers, evaluations)
            return AgentResult(agent, *(arrays[name] for name in ARRAYS))
        except BAD_ARRAYS as error:
            raise ValueError(f"{path} is damaged ({error}); delete it, and it is made again") from error

    def _path(self, oracle: Oracle, agent: str, *settings: Any) -> Path:
        worth = (oracle.space.budget.as_dict(), oracle.best_reward, oracle.random_reward)
        of = repr((das_gym.__version__, oracle.env_id, worth, agent, settings))
        readable = re.sub(r"[^\w.-]+", "_", f"{oracle.env_id}-{agent}")
        return Path(self.folder or "") / f"{readable}-{hashlib.sha256(of.encode()).hexdigest()[:12]}.npz"


def _check(arrays: Mapping[str, np.ndarray], seeds: int, n_layers: int, evaluations: int) -> None:
    """Refuse arrays that are no searches of so many seeds, layers and evaluations.

    Raises:
        ValueError: one is of another shape or kind.
        KeyError: one is missing.
    """
    shapes: dict[str, tuple[int, ...]] = {"answers": (seeds, n_layers), "curves": (seeds, evaluations)}
    kinds = {"answers": "b", "evaluations": "iu"}
    for name in ARRAYS:
        shape = shapes.get(name, (seeds,))
        if arrays[name].shape != shape or arrays[name].dtype.kind not in kinds.get(name, "f"):
            raise ValueError(f"{name} is {arrays[name].shape} {arrays[name].dtype}, and is to be {shape}")
    if np.isnan(arrays["curves"]).any() or not np.isfinite(arrays["milliseconds"]).all():
        raise ValueError("a reward or a time is no number")
