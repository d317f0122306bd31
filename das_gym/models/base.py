"""What every vision-language model offers to the rest of das_gym."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

Stream = tuple[Tensor, Tensor | None]
"""Hidden vectors (batch, tokens, hidden_size) and what to attend to, (batch, 1, 1, tokens) bool or None = all."""

Memo = Callable[[tuple, Callable[[], Any]], Any]
"""`memo(key, compute)` returns what `compute()` returned the first time `key` was seen."""


def no_memo(key: tuple, compute: Callable[[], Any]) -> Any:
    """The memo that remembers nothing."""
    del key
    return compute()


@dataclass(frozen=True)
class Layer:
    """One skippable unit: its name, the stream it updates and the stage it belongs to."""

    name: str
    stream: str
    stage: int


@dataclass(frozen=True)
class State:
    """What flows from stage to stage.

    Attributes:
        hidden: Per stream, (batch, tokens, hidden_size) float.
        attend: Per stream, (batch, 1, 1, tokens) bool, True = a token to attend to; None = all.
        image_types: (batch,) int64 token type of each image, 2 = NLVR2's second image; None = 1 everywhere.
    """

    hidden: Mapping[str, Tensor]
    attend: Mapping[str, Tensor | None]
    image_types: Tensor | None = None

    def with_hidden(self, hidden: Mapping[str, Tensor]) -> State:
        """The same state with other hidden vectors."""
        return replace(self, hidden=hidden)


class SkippableLayer(nn.Module):
    """A layer and the skip adapter that stands in for it; `prune` keeps one of the two for good."""

    def __init__(self, layer: nn.Module, skip_adapter: nn.Module) -> None:
        super().__init__()
        self.layer: nn.Module | None = layer
        self.skip_adapter: nn.Module | None = skip_adapter

    def prune(self, skipped: bool) -> None:
        """Remove the layer (skipped) or its skip adapter (kept).

        Raises:
            ValueError: the one to keep was removed before.
        """
        self.chosen(skipped)
        if skipped:
            self.layer = None
        else:
            self.skip_adapter = None

    def chosen(self, skipped: bool) -> nn.Module:
        """The module that runs.

        Raises:
            ValueError: that module was removed by `prune`.
        """
        module = self.skip_adapter if skipped else self.layer
        if module is None:
            removed, kept = ("skip adapter", "layer") if skipped else ("layer", "skip adapter")
            raise ValueError(f"this {removed} was removed by prune(); only its {kept} is left: use the pruned mask")
        return module


class VLP(nn.Module, ABC):
    """A vision-language pre-trained model whose layers can be skipped.

    `forward(batch, mask)` is `encode`, `begin`, one `advance` a stage, and `pool` in a row. Within a stage
    every layer reads the state before the stage.

    Attributes:
        layers: The skippable layers, in mask order.
        feature_size: Width of the pooled features.
        head_size: Width inside the heads of VQA and NLVR2: twice the hidden size, in METER and ViLT.
        pruned_mask: The mask whose other choices were removed, or None while all are there.
        tunable: Parts of parameter names; a parameter with one of them trains, others are frozen.
        streams_apart: Whether text and image enter stage 0 as hidden vectors of their own, a batch of 1 fitting any.
    """

    layers: tuple[Layer, ...]
    feature_size: int
    head_size: int
    tunable: ClassVar[tuple[str, ...]]
    streams_apart: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.pruned_mask: np.ndarray | None = None
        self.frozen = False

    @abstractmethod
    def text_stream(self, batch: Mapping[str, Tensor]) -> Stream:
        """Encoder outputs of `input_ids` and `attention_mask`, before all that trains, so that they can be kept."""

    @abstractmethod
    def image_stream(self, batch: Mapping[str, Tensor]) -> Stream:
        """Encoder outputs of `image`, likewise."""

    def encode(self, batch: Mapping[str, Tensor]) -> State:
        """Encoder outputs: all that neither a mask nor a tunable parameter touches."""
        text, image = self.text_stream(batch), self.image_stream(batch)
        return State(
            hidden={"text": text[0], "image": image[0]},
            attend={"text": text[1], "image": image[1]},
            image_types=batch.get("image_types"),
        )

    @abstractmethod
    def embed(self, encoded: State) -> State:
        """Encoder outputs to the state before stage 0."""

    @abstractmethod
    def skippable(self, index: int) -> SkippableLayer:
        """The module of layer `index`."""

    @abstractmethod
    def run_layer(self, index: int, state: State, skipped: bool, memo: Memo = no_memo, pooled_only: bool = False) -> Tensor:
        """New hidden vectors of the layer's stream.

        Args:
            index: Which layer, in mask order.
            state: The state before the layer's stage.
            skipped: Whether the skip adapter runs instead of the layer.
            memo: Shares work between states that have a hidden tensor in common.
            pooled_only: Compute the pooled token alone; allowed in the last stage.

        Returns:
            (batch, tokens, hidden_size), or (batch, 1, hidden_size) with `pooled_only`.
        """

    @abstractmethod
    def pool(self, state: State) -> Tensor:
        """(batch, feature_size) features that heads read, from the state after the last stage."""

    @property
    def stages(self) -> tuple[tuple[int, ...], ...]:
        """Layer indices of each stage."""
        count = 1 + max(layer.stage for layer in self.layers)
        return tuple(tuple(i for i, layer in enumerate(self.layers) if layer.stage == stage) for stage in range(count))

    def advance(self, state: State, stage: int, mask: Sequence[bool] | np.ndarray) -> State:
        """The state after `stage` under `mask` ((n_layers,) bool, True = skipped)."""
        last = stage == len(self.stages) - 1
        hidden = dict(state.hidden)
        for index in self.stages[stage]:
            hidden[self.layers[index].stream] = self.run_layer(index, state, bool(mask[index]), pooled_only=last)
        return state.with_hidden(hidden)

    def forward(self, batch: Mapping[str, Tensor], mask: Sequence[bool] | np.ndarray | None = None) -> Tensor:
        """Pooled features, (batch, feature_size), of the subnet under `mask` (None = nothing skipped)."""
        return self.forward_encoded(self.encode(batch), mask)

    def forward_encoded(self, encoded: State, mask: Sequence[bool] | np.ndarray | None = None) -> Tensor:
        """As `forward`, from encoder outputs."""
        mask = self.check_mask(mask)
        state = self.embed(encoded)
        for stage in range(len(self.stages)):
            state = self.advance(state, stage, mask)
        return self.pool(state)

    def check_mask(self, mask: Sequence[bool] | np.ndarray | None) -> np.ndarray:
        """The mask as an array; None means the pruned mask, or nothing skipped.

        Raises:
            ValueError: the mask does not have one entry a layer.
        """
        if mask is None:
            return self.pruned_mask if self.pruned_mask is not None else np.zeros(len(self.layers), bool)
        array = np.asarray(mask, dtype=bool)
        if array.shape != (len(self.layers),):
            raise ValueError(f"mask of shape {array.shape}: this model has {len(self.layers)} layers, give one bool each")
        return array

    def prune(self, mask: Sequence[bool] | np.ndarray) -> None:
        """Remove skipped layers, and the skip adapters of kept ones: the model really is smaller."""
        array = self.check_mask(mask)
        for index, skipped in enumerate(array):
            self.skippable(index).prune(bool(skipped))
        self.pruned_mask = array

    def freeze(self, dropout: bool = False) -> None:
        """Freeze every parameter that is not tunable, and stay in eval mode from now on, unless `dropout` is wanted."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(any(part in name for part in self.tunable))
        self.frozen = not dropout
        self.train(dropout)

    def train(self, mode: bool = True) -> VLP:
        """As in torch, except that a frozen model stays in eval mode."""
        return super().train(mode and not self.frozen)

    def tunable_state(self) -> dict[str, Tensor]:
        """The tunable parameters by name: all that an adaptation has to keep."""
        return {name: p for name, p in self.named_parameters() if any(part in name for part in self.tunable)}

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.parameters()).device


def fingerprint(vlp: VLP) -> str:
    """16 hex digits that change with any frozen parameter; take it before `prune` removes some."""
    digest = hashlib.sha256()
    for name, parameter in sorted(vlp.named_parameters()):
        if not any(part in name for part in vlp.tunable):
            digest.update(f"{name}{tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
