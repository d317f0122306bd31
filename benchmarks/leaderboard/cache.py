"""Cache the searches of a long comparison on disk, so that a stopped one continues."""

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
from das_gym.files import read_arrays, replacing

ARRAYS = ("answers", "curves", "evaluations", "milliseconds")


class ResultCache:
    """One file for all searches of an agent on a problem.

    A file belongs to a version of das_gym, an agent's settings, and a problem's budget and rewards. Use another folder after
    changing an agent.

    Args:
        folder: The folder; None caches nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def run(
        self,
        oracle: Oracle,
        agent: str,
        seeds: Sequence[int],
        evaluations: int,
        masks_per_turn: int,
        agent_kwargs: Mapping[str, Any],
        run: Callable[..., AgentResult] = run_agent,
    ) -> AgentResult:
        """Return the cached result, or run the searches and cache it. Arguments as for `run_agent`.

        Raises:
            ValueError: what `run` raises, or the file is damaged.
        """
        settings = (agent, seeds, evaluations, masks_per_turn, agent_kwargs)
        if self.folder is None:
            return run(oracle, *settings)
        problem = (oracle.env_id, oracle.space.budget.as_dict(), oracle.best_reward, oracle.random_reward)
        key = hashlib.sha256(repr((das_gym.__version__, problem, settings)).encode()).hexdigest()[:12]
        name = re.sub(r"[^\w.-]+", "_", f"{oracle.env_id}-{agent}")
        path = self.folder / f"{name}-{key}.npz"
        if not path.exists():
            result = run(oracle, *settings)
            with replacing(path) as part, part.open("wb") as file:
                np.savez(file, allow_pickle=False, **{name: getattr(result, name) for name in ARRAYS})
            return result
        try:
            arrays = read_arrays(path)
            shapes = {"answers": (len(seeds), oracle.space.n_layers), "curves": (len(seeds), evaluations)}
            if any(arrays[name].shape != shapes.get(name, (len(seeds),)) for name in ARRAYS):
                raise ValueError("its arrays have other shapes")
            return AgentResult(agent, *(arrays[name] for name in ARRAYS))
        except Exception as error:  # a damaged file can raise anything
            raise ValueError(f"{path} is damaged ({error}). Delete it, and it is made again") from error
