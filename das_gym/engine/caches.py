"""Caches from one call to the next: encoder outputs, scores of masks, and the full model's hidden vectors."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten, treespec_dumps, treespec_loads

from das_gym.engine.scores import Spending
from das_gym.files import expand_home, write_bytes
from das_gym.models.base import VLP, State, fingerprint, tensor_bytes
from das_gym.models.inputs import Processor, Prompt
from das_gym.models.macs import MacCounter

TENSOR_NAME = "hidden"
STRUCTURE_KEY = "form"
"""In a file: the name of a single tensor; the key of the metadata for the form of a structure of tensors."""

KEPT_LOGITS = 4
"""For how many sets of examples the full model's logits are kept: 12.5 MB for 1,000 examples of VQAv2's 3,129 answers."""

MAX_LOGITS_BYTES = 2**28
"""Most bytes of these logits for a set of examples: a language model has a vocabulary for each token of each answer."""

Key = tuple[int, bytes]
"""The hash of some examples, and the bits of a mask."""

CACHE_BYTES = 2**31
"""Bytes of encoder outputs that are kept on a CPU."""

Batch = tuple[int, int]
"""The place of a batch's first example, and its number of examples."""


def usable_bytes(device: torch.device, default: int, share: float) -> int:
    """Return `default` bytes on a CPU, and a share, 0..1, of the memory that is free now on a GPU."""
    if device.type != "cuda":
        return default
    # torch keeps freed memory for its next tensors, which the driver counts as used
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(share * (torch.cuda.mem_get_info(device)[0] + kept))


class EncoderCache:
    """Encoder outputs by text and by image, of `max_bytes` at most; None = CACHE_BYTES, or a quarter of a GPU's free memory.

    What does not fit replaces the least recently used output only if that has waited longer than itself, from use to use. So
    data that do not fit, read in the same order again and again, find as much as fits.

    Args:
        vlp, processor: The frozen model, and what makes its batches.
        max_bytes: Largest size in memory, in bytes.
        folder: Where to keep them on disk as well, under a name that changes with the frozen parameters, the transform, the
            tokenizer and the image's file. Nothing is ever removed there: METER-base at 384 px takes 1.8 MB an image.
        counter: Counts MACs of the encoders; None counts none.
        spent: Counts texts, images, and MACs with padding that went through the encoders.
    """

    def __init__(
        self,
        vlp: VLP,
        processor: Processor,
        max_bytes: int | None = None,
        folder: str | Path | None = None,
        counter: MacCounter | None = None,
        spent: Spending | None = None,
    ) -> None:
        self.vlp = vlp
        self.processor = processor
        self.max_bytes = usable_bytes(vlp.device, CACHE_BYTES, 0.25) if max_bytes is None else max_bytes
        self.spent = spent or Spending()
        self._counter = counter
        self.kept_bytes = 0
        self._kept: OrderedDict[tuple[str, Any], Any] = OrderedDict()
        self._uses = 0
        self._last_use: dict[tuple[str, Any], int] = {}
        self._disk = None if folder is None else _Disk(Path(folder), vlp, processor)

    def with_empty_caches(self) -> EncoderCache:
        """Return an empty cache of the same encoders, without a folder."""
        return EncoderCache(self.vlp, self.processor, self.max_bytes)

    def __call__(self, pairs: Sequence[Any]) -> State:
        """Return the encoder outputs of the pairs as one batch; see `VLP.gather`."""
        return self.vlp.gather(self.processor, pairs, self.encode)

    def encode(self, stream: str, wanted: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return the encoder output of each text (keyed by itself) or image, from memory, disk, or its encoder."""
        found = {key: self._kept[stream, key] for key in wanted if (stream, key) in self._kept}
        if self._disk is not None:
            found |= self._disk.read(stream, {key: item for key, item in wanted.items() if key not in found})
        missing = {key: item for key, item in wanted.items() if key not in found}
        if missing:
            if stream == "text":
                self.spent.texts += len(missing)
            else:
                self.spent.images += len(missing)
            fresh = {}
            with torch.no_grad():
                for key, part, macs in self.vlp.encode_items(self.processor, stream, missing, self._counter):
                    fresh[key] = part
                    self.spent.macs += macs
            if self._disk is not None:
                self._disk.write(stream, missing, fresh)
            found |= fresh
        for key in wanted:
            self._keep((stream, key), found[key])
        return found

    def has(self, stream: str, key: Any) -> bool:
        """Return True if the encoder output of a text or an image is in memory; the cache on disk does not count."""
        return (stream, key) in self._kept

    def _keep(self, key: tuple[str, Any], part: Any) -> None:
        self._uses += 1
        waited = self._uses - self._last_use.get(key, self._uses - len(self._kept))
        self._last_use[key] = self._uses
        if key in self._kept:
            self._kept.move_to_end(key)
            return
        size = tensor_bytes(part)
        while self._kept and self.kept_bytes + size > self.max_bytes:
            oldest = next(iter(self._kept))
            if self._uses - self._last_use[oldest] <= waited:
                return
            self.kept_bytes -= tensor_bytes(self._kept.pop(oldest))
        if size <= self.max_bytes:
            self._kept[key] = part
            self.kept_bytes += size


class _Disk:
    """Encoder outputs in files, one a text or image."""

    def __init__(self, folder: Path, vlp: VLP, processor: Processor) -> None:
        made_by = f"{type(vlp).__qualname__} {fingerprint(vlp)} {processor.identity()}"
        self.folder = expand_home(folder) / hashlib.sha256(made_by.encode()).hexdigest()[:16]
        self.device = vlp.device

    def read(self, stream: str, items: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return the stored outputs that exist and are not damaged."""
        from safetensors import SafetensorError, safe_open

        found = {}
        for key, item in items.items():
            try:
                with safe_open(self._path(stream, item), "pt", device=str(self.device)) as file:
                    form = (file.metadata() or {}).get(STRUCTURE_KEY)
                    if form is None:
                        found[key] = file.get_tensor(TENSOR_NAME)
                    else:
                        leaves = [file.get_tensor(str(number)) for number in range(len(file.keys()))]
                        found[key] = tree_unflatten(leaves, treespec_loads(form))
            except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError, RuntimeError):
                continue  # missing or damaged: it is computed and written again
        return found

    def write(self, stream: str, items: Mapping[Any, Any], outputs: Mapping[Any, Any]) -> None:
        """Write each, completely or not at all: a tensor by name, a structure of tensors by number and with its form."""
        from safetensors.torch import save

        for key, item in items.items():
            leaves, form = tree_flatten(outputs[key])
            one = isinstance(outputs[key], Tensor)
            tensors = {TENSOR_NAME if one else str(n): leaf.cpu().clone().contiguous() for n, leaf in enumerate(leaves)}
            write_bytes(self._path(stream, item), save(tensors, None if one else {STRUCTURE_KEY: treespec_dumps(form)}))

    def _path(self, stream: str, item: Any) -> Path:
        images = item.images if isinstance(item, Prompt) else (item,)
        name = item if isinstance(item, str) else " ".join(f"{image.key} {image.fingerprint()}" for image in images)
        digest = hashlib.sha256(name.encode()).hexdigest()
        return self.folder / stream / digest[:2] / f"{digest[:40]}.safetensors"


class Score(NamedTuple):
    """Means over the examples under a mask; the divergence is None unless requested."""

    loss: float
    metric: float
    divergence: float | None


class ScoreMemory:
    """Scores by examples and mask, and the full model's logits by examples.

    Everything is forgotten as soon as one of the `sources`, the tensors that scores depend on, was written to or replaced.
    torch counts writes, but not those through `tensor.data`.
    """

    def __init__(self, sources: Iterable[Tensor], limit: int = 100_000) -> None:
        self.limit = limit
        self._sources = tuple(sources)
        self._scores: dict[Key, Score] = {}
        self._logits: dict[tuple[int, int], list[Tensor]] = {}
        self._version: tuple[int, int] | None = None
        self.refresh()

    def refresh(self) -> bool:
        """Clear the cache if a source has changed since the last call, and return whether one has."""
        # torch raises `_version` with every in-place write; an inference tensor has none, but cannot be trained either.
        writes = sum(0 if source.is_inference() else source._version for source in self._sources)
        before = self._version
        self._version = (writes, hash(tuple(source.data_ptr() for source in self._sources)))
        if before == self._version:
            return False
        self.forget()
        return True

    def forget(self) -> None:
        """Clear the cache."""
        self._scores.clear()
        self._logits.clear()

    def find(self, keys: Iterable[Key], divergences: bool) -> dict[Key, Score]:
        """Return the known scores of these keys, with `divergences` only those that have one."""
        known = {key: self._scores[key] for key in keys if key in self._scores}
        return {key: score for key, score in known.items() if not divergences or score.divergence is not None}

    def keep(self, scores: Mapping[Key, Score]) -> None:
        """Add scores; clear the cache first if there is no room for both."""
        if len(self._scores) + len(scores) > self.limit:  # all at once: searches rarely come back to old masks
            self._scores.clear()
        self._scores.update(list(scores.items())[-self.limit :])

    def logits(self, key: tuple[int, int]) -> list[Tensor] | None:
        """Return the full model's logits, a tensor a batch, for a hash of examples and a batch size; None if unknown."""
        return self._logits.get(key)

    def keep_logits(self, key: tuple[int, int], logits: list[Tensor]) -> None:
        """Add logits, and forget the oldest if there are too many."""
        self._logits[key] = logits
        if len(self._logits) > KEPT_LOGITS:
            del self._logits[next(iter(self._logits))]


class TrunkMemory:
    """The full model's results on some examples, stage by stage, as far as memory allows. Masks that skip late read them.

    It also keeps the states after the units of a vision tower. The first results stay until `forget`: masks walk over the
    same examples in the same order, so a cache that drops the least recently used entry would drop each before it is needed
    again.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._kept: dict[tuple[Batch, Any], Any] = {}
        self._examples: int | None = None

    def forget(self) -> None:
        """Clear the cache."""
        self._kept.clear()
        self.bytes = 0

    def start(self, examples: int) -> None:
        """Set the hash of the examples that are scored from now on, and clear cached results on other examples."""
        if examples != self._examples:
            self.forget()
        self._examples = examples

    def known(self, batch: Batch, what: Any) -> Any:
        """Return a kept result on a batch, or None."""
        return self._kept.get((batch, what))

    def get_or_compute(self, batch: Batch, what: Any, compute: Callable[[], Any]) -> Any:
        """Return a kept result, or compute it, and keep it if there is room.

        `what` is which layer; -1 = the state before stage 0; bits of a vision tower's units = the state after them.
        """
        if (batch, what) in self._kept:
            return self._kept[batch, what]
        result = compute()
        size = tensor_bytes(result)
        if self.bytes + size <= self.max_bytes:
            self._kept[batch, what] = result
            self.bytes += size
        return result
