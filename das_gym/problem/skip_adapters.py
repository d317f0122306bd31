"""Closed-form fits on examples of a problem's train split, kept in the cache folder."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from das_gym.engine.evaluator import Evaluator
from das_gym.files import cache_folder
from das_gym.models.base import VLP
from das_gym.models.tensor_files import read_safetensors, write_tensors
from das_gym.tasks.base import content_hash

MAX_CACHED_BYTES = 4 * 2**30
"""Bytes of fitted weights that the cache folder keeps besides the newest; those used least recently go first."""


def calibration_examples(evaluator: Evaluator, train: Sequence[Any], count: int) -> list[Any]:
    """Return the first `count` examples of the train split in the task's order; ValueError if there are none."""
    if not len(train):
        raise ValueError(
            "`skip=linear`, `recover=linear` and `recover=refit` are fitted on the train split, which has no examples. Give "
            "data with a train split, or leave them out."
        )
    return [train[row] for row in evaluator.task.shuffled_order(train)[:count].tolist()]


def calibration_states(evaluator: Evaluator, examples: Sequence[Any]) -> list[Any]:
    """Return the state before the first unit of each batch of examples."""
    size = max(1, min(evaluator.batch_size, len(examples) // 8))  # eight batches or more: one is held out
    chunks = [examples[start : start + size] for start in range(0, len(examples), size)]
    with torch.no_grad():
        return [evaluator.vlp.embed(evaluator.encoder_cache(evaluator.task.pairs(chunk))) for chunk in chunks]


def add_linear_skips(evaluator: Evaluator, base: str, train: Sequence[Any], count: int, rank: int | None) -> None:
    """Give every unit of a model without adapters a linear skip adapter, from the cache or fitted now.

    `base` is the model's fingerprint; `count` examples of the train split are for calibration; `rank` None is full rank.
    """
    vlp = evaluator.vlp
    examples = calibration_examples(evaluator, train, count)

    def fit() -> dict[str, Tensor]:
        vlp.fit_skip_adapters(calibration_states(evaluator, examples), rank)
        return skip_adapter_tensors(vlp)

    vlp.put_skip_adapters(fitted_once(evaluator, base, examples, rank, fit))


def fitted_once(
    evaluator: Evaluator, base: str, examples: Sequence[Any], settings: Any, fit: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Return the weights that `fit` makes, by name, from the cache if they were fitted before.

    They depend on the model with the fingerprint `base`, on how `evaluator` reads `examples`, and on plain `settings`.
    """
    path = _cache_path(evaluator, base, examples, settings)
    if path.is_file():
        with suppress(OSError, ValueError):  # damaged, or removed by another process: they are fitted again
            tensors = read_safetensors(path).tensors
            path.touch()
            return tensors
    tensors = fit()
    with suppress(OSError):  # without a writable cache, they are fitted again the next time
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, tensors, {})
        _remove_old(path.parent)
    return tensors


def _remove_old(folder: Path) -> None:
    room = MAX_CACHED_BYTES
    _, *others = sorted(folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in others:
        room -= file.stat().st_size
        if room < 0:
            file.unlink(missing_ok=True)


def skip_adapter_tensors(vlp: VLP) -> dict[str, Tensor]:
    """Return the weights of all skip adapters, as `<unit>.<weight>`."""
    adapters = {layer.name: vlp.skippable_layer(index).skip_adapter for index, layer in enumerate(vlp.layers)}
    return {
        f"{unit}.{name}": tensor.detach().cpu().clone()
        for unit, adapter in adapters.items()
        if adapter is not None
        for name, tensor in adapter.state_dict().items()
    }


def _cache_path(evaluator: Evaluator, base: str, examples: Sequence[Any], settings: Any) -> Path:
    vlp = evaluator.vlp
    processor: Any = evaluator.task.processor
    read = [
        base,
        [layer.name for layer in vlp.layers],
        str(next(vlp.parameters()).dtype),
        evaluator.task.name,
        processor.identity(),  # the same examples give other tokens with another chat template
        content_hash(evaluator.task, examples),
        evaluator.batch_size,  # decides which examples are held out
        settings,
    ]
    name = hashlib.sha256(json.dumps(read).encode()).hexdigest()[:32]
    return cache_folder() / "skip_adapters" / f"{name}.safetensors"
