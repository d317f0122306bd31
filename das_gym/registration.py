"""The one table of environment ids."""

from __future__ import annotations

from dataclasses import dataclass

from gymnasium.envs.registration import register, registry


@dataclass(frozen=True)
class EnvEntry:
    """One environment: its id, and what is searched on what."""

    id: str
    model: str
    task: str
    data: str


ENVIRONMENTS = (EnvEntry("DAS-METER-VQA-v0", model="METER", task="VQA", data="Shapes-VQA (bundled) or VQAv2's format"),)


def register_all() -> None:
    """Register every environment; calling it twice does no harm."""
    for entry in ENVIRONMENTS:
        if entry.id not in registry:
            register(
                id=entry.id,
                entry_point="das_gym.envs.skip_env:SkipEnv",
                vector_entry_point="das_gym.envs.skip_vector_env:SkipVectorEnv",
                order_enforce=False,  # `make` returns the environment itself: episodes are one step, there is no order
                disable_env_checker=True,  # the tests run Gymnasium's checker, and SB3's
            )
