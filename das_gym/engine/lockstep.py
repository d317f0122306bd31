"""Examples side by side, stage by stage, each under a mask of its own: a layer runs once, on the rows that keep it.

The mask of a stage is chosen after the stages before it have run, so that it can depend on their hidden vectors. A mask that
all examples share gives the numbers of `Evaluator.evaluate_each`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from das_gym.engine.evaluator import Evaluator
from das_gym.engine.tree import autocast, with_bfloat16_layers
from das_gym.models.base import VLP, State
from das_gym.models.inputs import to_device, to_widest


@dataclass
class Batch:
    """Examples that run together; those of a model that cannot select rows run one by one."""

    examples: Sequence[Any]
    state: State
    pairs: int

    @property
    def rows_each(self) -> int:
        """Rows of an example in the state's tensors."""
        return self.pairs // len(self.examples)


class LockstepRunner:
    """Runs examples through one model in lockstep; `start`, one `advance` a stage, and `scores`, in this order.

    Args:
        evaluator: Model, head and task, cached encoder outputs, batch size and precision.

    Attributes:
        stage: The next stage.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.vlp: VLP = evaluator.vlp
        self.streams = tuple(dict.fromkeys(layer.stream for layer in self.vlp.layers))
        self.stage = 0
        self._runner = self.vlp if evaluator.precision == "float32" else with_bfloat16_layers(self.vlp)
        self._batches: list[Batch] = []

    @torch.inference_mode()
    def start(self, examples: Sequence[Any]) -> None:
        """Bring examples before stage 0; their encoder outputs come from the evaluator's cache where it has them."""
        size = self.evaluator.batch_size if self.vlp.selects_rows else 1
        self._batches = []
        for first in range(0, len(examples), size):
            chunk = examples[first : first + size]
            pairs = self.evaluator.task.pairs(chunk)
            state = self.vlp.embed(self.evaluator.encoder_cache(pairs))
            self._batches.append(Batch(chunk, self.vlp.enter_stage(state, 0)[0], len(pairs)))
        self.stage = 0

    @torch.inference_mode()
    def advance(self, masks: np.ndarray) -> None:
        """Run the next stage under (n, n_layers) bool masks, of which only the bits of its units are read."""
        is_last = self.stage == len(self.vlp.stages) - 1
        start = 0
        for batch in self._batches:
            own = masks[start : start + len(batch.examples)]
            start += len(batch.examples)
            hidden = dict(batch.state.hidden)
            for index in self.vlp.stages[self.stage]:
                skips = np.repeat(own[:, index], batch.rows_each)
                hidden[self.vlp.layers[index].stream] = self._run_unit(index, batch.state, skips, is_last)
            batch.state = batch.state.with_hidden(hidden)
            if not is_last:
                batch.state, _ = self.vlp.enter_stage(batch.state, self.stage + 1)
        self.stage += 1

    def _run_unit(self, index: int, state: State, skips: np.ndarray, is_last: bool) -> Tensor:
        with autocast(self.evaluator.precision, self.vlp.device):
            if skips.all() or not skips.any():
                return self._runner.run_layer(index, state, bool(skips[0]), pooled_only=is_last)
            output = None
            for skipped in (False, True):
                rows = to_device(torch.from_numpy(np.flatnonzero(skips == skipped)), self.vlp.device)
                some = self.vlp.select_rows(state, rows)
                part = self._runner.run_layer(index, some, skipped, pooled_only=is_last)
                if output is None:
                    output = part.new_empty(len(skips), *part.shape[1:])
                output[rows] = part.to(output.dtype)
        assert output is not None
        return output

    @torch.inference_mode()
    def features(self) -> dict[str, np.ndarray]:
        """Return what enters the next stage, by stream: (n, 2 * hidden_size) float32, the tokens' mean and the pooled token.

        Each of the two is scaled to mean 0 and variance 1, so that no value is beyond the root of its size. The pairs of an
        example are averaged before that.
        """
        found = {}
        for stream in self.streams:
            if stream in self._batches[0].state.hidden:
                parts = [self._summary(batch, stream) for batch in self._batches]
                found[stream] = torch.cat(parts).cpu().numpy()
        return found

    def _summary(self, batch: Batch, stream: str) -> Tensor:
        summary = self.vlp.summarize_rows(batch.state, stream).float()
        averaged = summary.unflatten(0, (len(batch.examples), -1)).mean(1)
        return F.layer_norm(averaged, averaged.shape[-1:]).flatten(1)

    @torch.inference_mode()
    def scores(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (n,) float64 losses in nats and metrics, 0..1, after the last stage."""
        task = self.evaluator.task
        found = []
        for batch in self._batches:
            targets = {name: to_device(t, self.vlp.device) for name, t in task.targets(batch.examples).items()}
            logits = self.evaluator.head(task.group_features(self.vlp.pool(batch.state)))
            scored = (task.losses(logits, targets), task.metrics(logits, targets))
            found.append(torch.stack([to_widest(values) for values in scored]))
        losses, metrics = torch.cat(found, dim=1).cpu().double().numpy()
        return losses, metrics
