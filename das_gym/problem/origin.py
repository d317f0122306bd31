"""Where a model came from: a folder, or an object in memory whose parameters are shared with the caller."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from das_gym.problem.config import ProblemConfig
from das_gym.registration import LIVE_ENV

SAMPLED = 64
"""About how many values of each parameter are in a checksum: an optimizer's step changes nearly all of them."""


@dataclass(frozen=True)
class Origin:
    """Where a model came from. How its masks are scored is in `das_gym.problem.config.Scoring`.

    Attributes:
        config: The settings that it was loaded by; None for a live model, or one put together by the caller.
        settings: Settings of the model that `config` lacks, such as `dropout`.
        shared: The parameters that a live model shares with the caller, who might train them; empty for a folder.
        checksum: That of `shared` when the problem was made.
    """

    config: ProblemConfig | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    shared: tuple[Tensor, ...] = field(default=(), repr=False)
    checksum: float = 0.0

    @classmethod
    def of_live(cls, parameters: Iterable[Tensor]) -> Self:
        """Return the origin of a live model with these parameters."""
        shared = tuple(parameters)
        return cls(shared=shared, checksum=sampled_sum(shared))

    @property
    def folder(self) -> Path | None:
        """The folder or file of the weights; None if there is none."""
        return None if self.config is None else self.config.weights

    @property
    def env_id(self) -> str:
        """Id of the environment of the problem: of model and task, or that of live problems."""
        return LIVE_ENV if self.config is None else self.config.env_id

    def check_unchanged(self) -> None:
        """Raise ValueError if a live model was trained since its problem was made: costs and caches are of the old one."""
        if self.shared and sampled_sum(self.shared) != self.checksum:
            raise ValueError(
                "the model has changed since its Problem was made. Make a new one: Problem.from_model(model, ...)"
            )


@torch.no_grad()
def sampled_sum(tensors: Iterable[Tensor]) -> float:
    """Return a checksum of tensors: the weighted sum of some values of each, in float64. It takes milliseconds."""
    total = 0.0
    for number, tensor in enumerate(tensors):
        flat = tensor.detach().reshape(-1)
        values = flat[:: max(1, len(flat) // SAMPLED)].double()
        total += (number + 1) * float(values.sum())
    return total
