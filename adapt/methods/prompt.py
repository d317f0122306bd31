"""Prompt tuning (Lester et al., arXiv 2104.08691): trained virtual tokens, by peft."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from das_gym.adapt.methods.base import Method, Width
from torch import nn

from das_gym.models.base import VLP, State


@dataclass(frozen=True)
class Prompt(Method):
    """Train virtual tokens that are appended to every stream before the first skippable layer.

    Attributes:
        tokens: Number of tokens in each stream.
    """

    title: ClassVar[str] = "prompt tuning"
    remaining: ClassVar[str] = "virtual tokens in its input"

    tokens: Width = 16

    def insert(self, vlp: VLP) -> list[nn.Parameter]:
        if vlp.promptless:
            raise ValueError(
                f"prompt tuning is not supported by {type(vlp).__name__}: {vlp.promptless}. Choose another method."
            )
        vlp.remove_adapters()
        widths = {layer.stream: vlp.sites(index)[0].width for index, layer in enumerate(vlp.layers)}
        vlp.prompts = Prompts(widths, self.tokens).to(vlp.device)
        return list(vlp.prompts.parameters())


class Prompts(nn.Module):
    """Appends virtual tokens to a state before stage 0."""

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
        """Return the state with longer streams; the position that the head reads stays the same."""
        hidden = dict(state.hidden)
        attend = dict(state.attend)
        for stream, embedding in self.streams.items():
            own = hidden[stream]
            virtual_tokens = embedding(torch.arange(self.tokens, device=own.device))
            # Behind the others, so that the head reads the same position.
            hidden[stream] = torch.cat((own, virtual_tokens.to(own.dtype).expand(len(own), -1, -1)), dim=1)
            seen = attend.get(stream)
            if seen is not None:
                attend[stream] = torch.cat((seen, seen.new_ones(*seen.shape[:-1], self.tokens)), dim=-1)
        return State(hidden, attend, state.extras)
