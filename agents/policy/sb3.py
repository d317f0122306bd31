"""The policy network as a policy of MaskablePPO, for `DAS-Suite-v0` with action="sequence"."""

from __future__ import annotations

from typing import Any

import torch
from das_gym.agents.policy.network import PolicyConfig, UnitNetwork
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn


class SuiteFeatures(BaseFeaturesExtractor):
    """Concatenates the scores of the units and the vector of the problem.

    Args:
        observation_space: Observation space of `DAS-Suite-v0` with `flat=False`.
        statistics: Names of the observed layer statistics.
        width, blocks: As in `PolicyConfig`.
    """

    def __init__(
        self, observation_space: spaces.Dict, statistics: tuple[str, ...] = (), width: int = 32, blocks: int = 2
    ) -> None:
        self.n = int(observation_space["units"].shape[0])  # type: ignore[index]
        super().__init__(observation_space, self.n + width)
        self.network = UnitNetwork(PolicyConfig(tuple(statistics), width=width, blocks=blocks))

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Return (batch, n + width) features."""
        statistics = observations["statistics"].unflatten(1, (self.n, -1))
        goals, saved = observations["budget"], observations["saved"].squeeze(1)
        return torch.cat(self.network(statistics, observations["units"], observations["skipped"], goals, saved), dim=1)


class _Scores(nn.Module):
    """Selects the scores, which are the logits of the actions."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, features: Tensor) -> Tensor:
        return features[:, : self.n]


class _Value(nn.Module):
    """Estimates the value from the vector of the problem."""

    def __init__(self, n: int, width: int) -> None:
        super().__init__()
        self.n = n
        self.layers = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features[:, self.n :])


class SuitePolicy(MaskableActorCriticPolicy):
    """`UnitNetwork` as actor and critic.

    Args:
        statistics: Names of the observed layer statistics.
        width, blocks: As in `PolicyConfig`.
        others: Arguments of SB3's policies.
    """

    def __init__(
        self, *args: Any, statistics: tuple[str, ...] = (), width: int = 32, blocks: int = 2, **others: Any
    ) -> None:
        self._sizes: dict[str, Any] = {"statistics": tuple(statistics), "width": width, "blocks": blocks}
        given = {"features_extractor_class": SuiteFeatures, "features_extractor_kwargs": self._sizes, "ortho_init": False}
        super().__init__(*args, **{**others, **given, "net_arch": []})

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        n = self.features_extractor.n
        self.action_net = _Scores(n)
        self.value_net = _Value(n, self._sizes["width"])
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self._sizes}

    @property
    def network(self) -> UnitNetwork:
        """The network, as it is saved and used without SB3."""
        network: UnitNetwork = self.features_extractor.network
        return network
