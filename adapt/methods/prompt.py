"""Prompt tuning (Lester et al., arXiv 2104.08691): learnt tokens, by peft."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from das_gym.adapt.methods.base import Method, check_widths
from torch import nn

from das_gym.models.base import VLP, State


@dataclass(frozen=True)
class Prompt(Method):
    """Learnt tokens behind those of every stream, before the first skippable layer; they take part in all of them.

    Attributes:
        tokens: How many in each stream, at least 1.
    """

    title: ClassVar[str] = "prompt tuning"
    leaves: ClassVar[str] = "learnt tokens in its input"

    tokens: int = 16

    def __post_init__(self) -> None:
        check_widths(self, "tokens")

    def insert(self, vlp: VLP) -> list[nn.Parameter]:
        """Embeddings of prompts.

        Raises:
            ValueError: no token can stand among the model's own.
        """
        if vlp.promptless:
            raise ValueError(f"prompt tuning: not in a {type(vlp).__name__}, since {vlp.promptless}; choose another method")
        vlp.remove_adapters()
        widths = {layer.stream: vlp.sites(index)[0].width for index, layer in enumerate(vlp.layers)}
        vlp.prompts = Prompts(widths, self.tokens).to(vlp.device)
        return list(vlp.prompts.parameters())


class Prompts(nn.Module):
    """Adds learnt tokens to a state before stage 0.

    Args:
        widths: Of hidden vectors, by stream.
        tokens: How many.
    """

    def __init__(self, widths: Mapping[str, int], tokens: int) -> None:
        super().__init__()
        from peft import PromptTuningConfig
        from peft.tuners.prompt_tuning import PromptEmbedding

        self.tokens = tokens
        self.streams = nn.ModuleDict()
        for stream, width in widths.items():
            config = PromptTuningConfig(num_virtual_tokens=tokens, token_dim=width, num_transformer_submodules=1)
            prompts: Any = PromptEmbedding(config, nn.Identity())
            nn.init.normal_(prompts.embedding.weight, std=0.02)
            self.streams[stream] = prompts

    def forward(self, state: State) -> State:
        """The state with its streams longer; the token that is read stays where it is."""
        hidden, attend = dict(state.hidden), dict(state.attend)
        for stream, embedding in self.streams.items():
            own = hidden[stream]
            learnt = embedding(torch.arange(self.tokens, device=own.device))
            hidden[stream] = torch.cat((own, learnt.to(own.dtype).expand(len(own), -1, -1)), dim=1)
            seen = attend.get(stream)
            if seen is not None:
                attend[stream] = torch.cat((seen, seen.new_ones(*seen.shape[:-1], self.tokens)), dim=-1)
        return State(hidden, attend, state.extras)
