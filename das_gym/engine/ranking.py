"""Rank images and texts against each other: every pair of them is scored under one mask.

Encoders run once per text and once per image. So does everything that a model computes before its streams meet: in METER the
self-attention of stage 0, and the keys and values of its cross-attention. In the last stage the pooled token is the only
query. Texts of similar length share a batch. The scores are those of plain forwards, to float rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from das_gym.data.images import ImageSource
from das_gym.engine.caches import EncoderCache
from das_gym.models.base import VLP, State
from das_gym.models.inputs import Processor, padded_length

LEVELS = (1, 5, 10)

SHARED_PARTS = 4
"""Memory for each text besides its encoder output, in units of it: hidden vectors, their self-attention, keys, values."""

IMAGE_BLOCK = 32


@torch.inference_mode()
def score_pairs(
    vlp: VLP,
    head: nn.Module,
    processor: Processor,
    images: Sequence[ImageSource],
    texts: Sequence[str],
    mask: Sequence[bool] | np.ndarray | None = None,
    batch_size: int = 64,
    max_bytes: int = 2**30,
    progress: Callable[[int], Any] | None = None,
) -> np.ndarray:
    """Return (n_images, n_texts) float32: the score of every image with every text.

    `head` maps (n, feature_size) pooled features to (n,) scores, as that of a task with a gallery does, see `Task.gallery`.
    `mask` is (n_layers,) bool, True = skipped; None is the pruned mask, or nothing skipped. One image goes through the model
    with `batch_size` texts at a time. `max_bytes` are kept of the texts, and of the images, in memory; images that do not
    fit are encoded again for every lot of texts that does. `progress` is called with the number of pairs done.

    Raises:
        ValueError: a model in train mode, a mask of another width, or a score that is not finite.
    """
    if vlp.training:
        raise ValueError("the model is in train mode, where dropout changes its scores: call eval() or freeze() first")
    array = vlp.check_mask(mask)
    scores = np.empty((len(images), len(texts)), dtype=np.float32)
    encoder_cache = EncoderCache(vlp, processor, max_bytes)
    for lot in _text_lots(encoder_cache, texts, batch_size, max_bytes):
        for row, source in enumerate(images):
            if row % IMAGE_BLOCK == 0:
                block = images[row : row + IMAGE_BLOCK]
                encoded = encoder_cache.encode("image", {each.key: each for each in block})
            image = _Side(vlp, "image", encoded[source.key][None], None)
            for columns, text in lot:
                scores[row, columns] = head(_pool_pairs(vlp, array, text, image)).float().cpu().numpy()
                if progress is not None:
                    progress(len(columns))
    bad = np.argwhere(~np.isfinite(scores))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"{len(bad)} of {scores.size} scores are NaN or infinite, the first is that of {images[row].key} with "
            f"{texts[column]!r}. The adapters or the head of this model are damaged: train them again"
        )
    return scores


class _Side:
    """Texts or an image, with everything that depends on them alone.

    `hidden` is (n, tokens, hidden_size) before stage 0 if streams are apart, else encoder outputs.
    """

    def __init__(self, vlp: VLP, stream: str, hidden: Tensor, attend: Tensor | None) -> None:
        self.attend = attend
        self.hidden = hidden
        if vlp.streams_apart:  # the content of the other stream makes no difference
            self.hidden = vlp.embed(State({"text": hidden, "image": hidden}, {})).hidden[stream]
        self.own_ids = {id(self.hidden)}  # of hidden vectors that depend on this side alone
        self._found: dict[tuple, Any] = {}

    def remember(self, key: tuple, compute: Callable[[], Any]) -> Any:
        """Return a result computed from hidden vectors of this side; it depends on this side alone as well."""
        if key not in self._found:
            self._found[key] = compute()
            self.own_ids.add(id(self._found[key]))
        return self._found[key]


def _pool_pairs(vlp: VLP, mask: np.ndarray, texts: _Side, image: _Side) -> Tensor:
    state = State({"text": texts.hidden, "image": image.hidden}, {"text": texts.attend, "image": image.attend})
    if not vlp.streams_apart:
        state = vlp.embed(state.with_hidden({"text": texts.hidden, "image": image.hidden.expand(len(texts.hidden), -1, -1)}))

    def memo(key: tuple, compute: Callable[[], Any]) -> Any:
        for side in (texts, image):
            if key[-1] in side.own_ids:
                return side.remember(key, compute)
        return compute()

    for stage, layers in enumerate(vlp.stages):
        hidden = dict(state.hidden)
        last = stage == len(vlp.stages) - 1
        for index in layers:
            hidden[vlp.layers[index].stream] = vlp.run_layer(index, state, bool(mask[index]), memo, pooled_only=last)
        state = state.with_hidden(hidden)
    return vlp.pool(state.with_hidden({name: h.expand(len(texts.hidden), -1, -1) for name, h in state.hidden.items()}))


def _text_lots(
    encoder_cache: EncoderCache, texts: Sequence[str], batch_size: int, max_bytes: int
) -> Iterator[list[tuple[np.ndarray, _Side]]]:
    lot: list[tuple[np.ndarray, _Side]] = []
    kept = 0
    order = np.argsort(encoder_cache.processor.texts(texts)["attention_mask"].sum(dim=1).numpy(), kind="stable")
    for start in range(0, len(order), batch_size):
        columns = order[start : start + batch_size]
        found = encoder_cache.encode("text", {texts[column]: texts[column] for column in columns})
        parts = [found[texts[column]] for column in columns]
        lengths = torch.tensor([len(part) for part in parts])
        tokens = padded_length(int(lengths.max()))  # attention is faster if its keys fill whole vectors
        hidden = torch.stack([F.pad(part, (0, 0, 0, tokens - len(part))) for part in parts])
        attend = (torch.arange(tokens) < lengths[:, None])[:, None, None].to(hidden.device)
        size = (1 + SHARED_PARTS) * hidden.numel() * hidden.element_size()
        if lot and kept + size > max_bytes:
            yield lot
            lot = []
            kept = 0
        lot.append((columns, _Side(encoder_cache.vlp, "text", hidden, attend)))
        kept += size
    yield lot


def recalls(scores: np.ndarray, image_of_text: Sequence[int] | np.ndarray) -> dict[str, float]:
    """Return how often the right match is among the best 1, 5 and 10, given finite (n_images, n_texts) scores.

    `image_of_text` is (n_texts,) the index of each text's image; ValueError for an image without a text.

    Returns:
        0..1 each. `tr_r1`, `tr_r5`, `tr_r10`, text retrieval: the share of images with one of their texts among the best;
            `ir_r1`, ..., image retrieval: the share of texts with their image among them. Among equal scores the wrong ones
            count as better, so that a constant score earns nothing.
    """
    owner = np.asarray(image_of_text)
    if not np.array_equal(np.unique(owner), np.arange(len(scores))):
        raise ValueError(f"`image_of_text` must name each of the {len(scores)} images, 0..{len(scores) - 1}, at least once")
    true = owner[None] == np.arange(len(scores))[:, None]
    best_own = np.where(true, scores, -np.inf).max(axis=1, keepdims=True)
    text_rank = ((scores >= best_own) & ~true).sum(axis=1)
    own = scores[owner, np.arange(len(owner))]
    image_rank = (scores >= own[None]).sum(axis=0) - 1
    ranks = {"tr": text_rank, "ir": image_rank}
    return {f"{way}_r{level}": float((rank < level).mean()) for way, rank in ranks.items() for level in LEVELS}
