"""Masks as a prefix tree of stages: what masks share is computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor

from das_gym.engine.precision import autocast
from das_gym.engine.scores import Spending
from das_gym.models.base import VLP, State
from das_gym.models.macs import OWN, MacCounter

Trunk = Callable[[Any, Callable[[], Any]], Any]
"""`trunk(what, compute)` returns what `compute()` did the first time, if there was room for it."""

Known = Callable[[Any], Any]
"""`known(what)` returns what a trunk keeps; None = nothing."""

Watch = Callable[[int, State, Tensor], None]
"""`watch(index, state, output)` sees each layer of the full model: the state before its stage, and its output."""


class MaskTree:
    """Masks that agree on their first stages share a path from the root; a leaf is a distinct mask.

    Within a stage each layer runs at most twice (kept, skipped) per parent state, the parts that layers pass to their memo
    run once per hidden state that they read, and in the last stage the pooled token is the only query. Nothing is
    approximated. A memo's key is the layer, the part, and the id of every hidden tensor that the part reads.

    Args:
        masks: (m, n_layers) bool, True = skipped.
        spent: Counts runs and MACs, of which `counter` knows those of one run.
        precision: Of the layers; a result of `resolve_precision`.
        runner: Whose layers run: `vlp`, or its `with_bfloat16_layers`.
    """

    def __init__(
        self, vlp: VLP, masks: np.ndarray, spent: Spending, precision: str, runner: VLP, counter: MacCounter
    ) -> None:
        self.vlp = vlp
        self.masks = masks
        self.spent = spent
        self.precision = precision
        self.runner = runner
        self.counter = counter
        self._stages = vlp.stages
        self._device = vlp.device
        self._keep: Trunk | None = None
        self._watch: Watch | None = None
        self._front = [index for stage in self._stages[: vlp.front] for index in stage]

    def leaves(
        self, state: State, trunk: Trunk | None = None, known: Known | None = None, watch: Watch | None = None
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield the leaves depth first, so that memory grows with depth and not with the number of masks.

        Args:
            state: The state before stage 0.
            trunk: Keeps the outputs of layers of the full model, by index, and the states that `VLP.enter_stage` gives after
                `VLP.front` stages, by the bits of those.
            known: Looks those states up: masks whose first bits are known start after those stages.
            watch: Called for every layer of the full model; needs a trunk and nothing `known`.

        Yields:
            Rows of `masks` that are the same mask, and its pooled features; the full model, if included, comes first.
        """
        rows = np.arange(len(self.masks))
        self._keep = trunk
        self._watch = watch
        if not self._front or known is None:
            yield from self._below(state, 0, rows, {}, trunk)
            return
        front = self.masks[:, self._front]
        kept = {bits: entered for bits in set(map(_bits, front)) if (entered := known(bits)) is not None}
        rest = rows[[_bits(row) not in kept for row in front]]
        first = not front[rest].any(axis=1).all()  # the rest has the full model, which callers expect as the first leaf
        if len(rest) and first:
            yield from self._below(state, 0, rest, {}, trunk)
        for bits, entered in sorted(kept.items(), key=lambda item: item[0]):
            same = rows[[_bits(row) == bits for row in front]]
            yield from self._run_children(entered, self.vlp.front, same, {}, None if any(bits) else trunk)
        if len(rest) and not first:
            yield from self._below(state, 0, rest, {}, trunk)

    def _below(
        self, state: State, stage: int, rows: np.ndarray, memory: dict[tuple, Any], trunk: Trunk | None
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield the leaves below `state`, which all masks in `rows` have before `stage`.

        `memory` is shared by states with the same parent, which have hidden tensors in common. Its keys hold ids of those,
        so what was computed from a tensor is dropped with it. `trunk` is None once something was skipped.
        """
        if stage < len(self._stages):
            state, macs = self.vlp.enter_stage(state, stage)
            self.spent.macs += macs
            if self._front and stage == self.vlp.front and self._keep is not None:
                entered = state
                self._keep(_bits(self.masks[rows[0]][self._front]), lambda: entered)
        yield from self._run_children(state, stage, rows, memory, trunk)

    def _run_children(
        self, state: State, stage: int, rows: np.ndarray, memory: dict[tuple, Any], trunk: Trunk | None
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield the leaves below a state that `VLP.enter_stage` has returned."""
        if stage == len(self._stages):
            features = self.vlp.pool(state)
            self.spent.macs += self.counter.pool(state)[1]
            yield rows, features
            return
        layers = stage_order(self.vlp, stage, state)
        outputs: dict[tuple[int, bool], Tensor] = {}
        below: dict[tuple, Any] = {}
        bits = self.masks[rows][:, layers]
        choices = np.unique(bits, axis=0)
        for number, choice in enumerate(choices):
            hidden = dict(state.hidden)
            for index, skipped in zip(layers, choice.tolist(), strict=True):
                if (index, skipped) not in outputs:
                    outputs[index, skipped] = self._run(index, state, skipped, memory, trunk)
                hidden[self.vlp.layers[index].stream] = outputs[index, skipped]
            same = rows[(bits == choice).all(axis=1)]
            yield from self._below(state.with_hidden(hidden), stage + 1, same, below, None if choice.any() else trunk)
            needed = {key for later in choices[number + 1 :] for key in zip(layers, later.tolist(), strict=True)}
            for key in outputs.keys() - needed:
                # A freed tensor's id can be given to a new one: entries made from it must go at the same time.
                dead = id(outputs.pop(key))
                for entry in [entry for entry in below if dead in entry[2:]]:
                    del below[entry]

    def _run(self, index: int, state: State, skipped: bool, memory: dict[tuple, Any], trunk: Trunk | None = None) -> Tensor:
        """Run a layer or its skip adapter and count that, or take the trunk's output."""
        if trunk is not None and not skipped:
            output: Tensor = trunk(index, lambda: self._run(index, state, skipped, memory))
            if self._watch is not None:
                self._watch(index, state, output)
            return output
        ran = {OWN}  # parts that an earlier state computed are found in `memory`, and cost nothing here

        def memo(key: tuple, compute: Callable[[], Any]) -> Any:
            if key not in memory:
                memory[key] = compute()
                ran.add(key[1])
            return memory[key]

        last = self.vlp.layers[index].stage == len(self._stages) - 1
        # Only the layer runs in bfloat16: the state between layers stays in the model's own type, so errors do not add up.
        with autocast(self.precision, self._device):
            hidden = self.runner.run_layer(index, state, skipped, memo, pooled_only=last)
        parts = self.counter.layer(index, state, skipped, pooled_only=last)
        macs = sum(count for part, count in parts.items() if part in ran)
        self.spent.macs += macs
        self.spent.layer_runs += not skipped
        self.spent.adapter_runs += skipped and macs > 0
        return hidden


def stage_order(vlp: VLP, stage: int, state: State) -> list[int]:
    """Return the layers of a stage in the order in which a walk chooses their bits.

    Choices are sorted by the first layer, so that the longest stream changes least often: one output of it is held at a
    time, while both outputs of shorter streams are kept and used again.
    """
    return sorted(vlp.stages[stage], key=lambda index: -state.hidden[vlp.layers[index].stream].shape[1])


def _bits(row: np.ndarray) -> tuple[bool, ...]:
    return tuple(row.tolist())
