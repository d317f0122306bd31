"""Figures of the environments' pages."""

from __future__ import annotations

import io
from typing import Any

import gymnasium
import numpy as np
from das_gym.agents import Budget, MaskSpace, make_agent
from PIL import Image

from das_gym import ENVIRONMENTS

TURNS = 20


def search_figure(env_id: str) -> bytes:
    """Render `env_id` at the end of a search by `bayes` on its table, as PNG."""
    env: Any = gymnasium.make(ENVIRONMENTS[env_id].tabular_id, render_mode="rgb_array").unwrapped
    agent = make_agent("bayes", MaskSpace(Budget(env.n_layers, 4)), seed=0)
    env.reset(seed=0)
    for _ in range(TURNS):
        masks = agent.ask(3)
        agent.tell(masks, np.array([_step(env, mask) for mask in masks]))
    _step(env, agent.best())
    buffer = io.BytesIO()
    Image.fromarray(env.render()).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _step(env: Any, mask: np.ndarray) -> float:
    env.reset()
    return float(env.step(np.asarray(mask, dtype=np.int8))[1])
