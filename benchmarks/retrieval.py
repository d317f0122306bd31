"""How much cheaper a full ranking of images and texts is than scoring its pairs by plain forwards, as ratios of one run.

    python -m benchmarks.retrieval                             METER-mini, 100 images and 500 captions of Shapes-captions
    python -m benchmarks.retrieval --images 20 --json retrieval.json

The engine's side includes everything: opening and transforming images, tokenising, encoders, layers, head. A plain forward
runs encoders and all layers for every pair, with every token a query, and comes in three kinds:

    everything   images opened and transformed, texts tokenised for every pair, texts padded as the processor does
    kept inputs  pixels and tokens made once and not counted, texts padded as the processor does
    reference    pixels and tokens made once and not counted, texts padded to the longest that the model is given, as the
                 reference does

MACs are given besides: what is left to a pair once nothing is computed twice bounds the ratio of any exact method.

Each side runs at its best batch size of those tried, in one thread, and processor time counts, so that other work on the
machine matters little. Plain forwards are timed on `--plain` pairs, evenly spread over the ranking, and scaled. Weights of
adapters and head are random: they change no time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.machine import describe_machine
from das_gym.data.images import ImageSource
from das_gym.engine.ranking import rank
from das_gym.files import write_json
from das_gym.models.base import VLP
from das_gym.models.encoding import meta_batch
from das_gym.models.inputs import Pair
from das_gym.models.macs import OWN, MacCounter
from das_gym.models.meter.model import METER
from das_gym.problem.config import ProblemConfig
from das_gym.problem.costs import count_costs
from das_gym.problem.loading import Backbone, load_backbone, new_head
from das_gym.tasks.base import Gallery
from das_gym.tasks.retrieval.task import RetrievalTask

BATCH_SIZES = (16, 32, 64, 128)
KINDS = ("everything", "kept inputs", "reference")
MASKS = {"nothing skipped": (), "k = 4: text 0, 1 and image 0, 1": (0, 1, 6, 7)}


def plain_features(vlp: VLP, batch: Mapping[str, Tensor], mask: np.ndarray) -> Tensor:
    """Pooled features as the reference computes them: every token a query in the last stage too."""
    state = vlp.embed(vlp.encode(batch))
    for stage in vlp.stages:
        new = {vlp.layers[i].stream: vlp.run_layer(i, state, bool(mask[i])) for i in stage}
        state = state.with_hidden({**state.hidden, **new})
    return vlp.pool(state)


def pair_macs(vlp: METER, mask: np.ndarray, text_tokens: int) -> int:
    """MACs that the engine spends on a pair: layers, without what depends on the text or on the image alone."""
    counter = MacCounter(vlp)
    state = counter.embed(counter.encode(meta_batch(text_tokens, (3, vlp.config.image_size, vlp.config.image_size)))[0])[0]
    alone, macs = {"text", "image"}, counter.pool(state)[1]
    for stage, layers in enumerate(vlp.stages):
        met = set()
        for index in layers:
            stream = vlp.layers[index].stream
            other = "text" if stream == "image" else "image"
            read = {OWN: False, "self": stream in alone, "skip": stream in alone, "cross": other in alone}
            parts = counter.layer(index, state, bool(mask[index]), pooled_only=stage == len(vlp.stages) - 1)
            macs += sum(count for part, count in parts.items() if not read[part])
            if not mask[index]:
                met.add(stream)
        alone -= met
    return macs


class PlainForwards:
    """Scores the pairs of a ranking one by one, so many at a time.

    Args:
        backbone: The model.
        head: Its head.
        ranked: Images and texts.
        count: How many pairs to time; an image keeps its texts in a row, as in the reference.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, ranked: Gallery, count: int) -> None:
        self.backbone = backbone
        self.head = head
        every = len(ranked.images) * len(ranked.texts)
        per_image = min(len(ranked.texts), max(BATCH_SIZES))
        images = np.unique(np.linspace(0, len(ranked.images) - 1, max(1, min(count, every) // per_image)).astype(int))
        self.at = [(int(row), column) for row in images for column in range(per_image)]
        self.pairs = [Pair(ranked.texts[column], ranked.images[row]) for row, column in self.at]
        processor = backbone.processor
        self._inputs = processor(self.pairs)
        self.tokens = self._inputs["input_ids"].shape[1]
        spare = processor.max_text_length - self.tokens
        pad = processor.tokenizer.pad_token_id
        self._longest = self._inputs | {
            "input_ids": F.pad(self._inputs["input_ids"], (0, spare), value=pad),
            "attention_mask": F.pad(self._inputs["attention_mask"], (0, spare)),
        }

    def _batch(self, kind: str, rows: slice) -> dict[str, Tensor]:
        if kind == "everything":
            return self.backbone.processor(self.pairs[rows])
        return {name: t[rows] for name, t in (self._longest if kind == "reference" else self._inputs).items()}

    @torch.inference_mode()
    def __call__(self, kind: str, batch_size: int, mask: np.ndarray) -> np.ndarray:
        """(pairs,) scores."""
        starts = range(0, len(self.pairs), batch_size)
        batches = (self._batch(kind, slice(start, start + batch_size)) for start in starts)
        return torch.cat([self.head(plain_features(self.backbone.vlp, batch, mask)) for batch in batches]).numpy()


def best_of(run: Callable[[int], Any], pairs: int, repeats: int) -> tuple[float, int]:
    """Least processor seconds a pair over batch sizes and repeats, and the batch size."""
    found = []
    for batch_size in BATCH_SIZES * repeats:
        started = time.process_time()
        run(batch_size)
        found.append(((time.process_time() - started) / pairs, batch_size))
    return min(found)


@dataclass(frozen=True)
class Contest:
    """What both sides rank.

    Attributes:
        backbone: The model.
        head: Its head.
        ranked: Images and texts.
        plain: The plain forwards.
        repeats: How often they run.
    """

    backbone: Backbone
    head: nn.Module
    ranked: Gallery
    plain: PlainForwards
    repeats: int

    def measure(self, name: str, mask: np.ndarray) -> dict[str, Any]:
        """Time both sides under a mask, and print how they compare."""
        ranked, pairs = self.ranked, len(self.ranked.images) * len(self.ranked.texts)
        few = ranked.images[: max(1, len(ranked.images) // 10)]
        _, size = best_of(lambda size: self._rank(few, mask, size), len(few) * len(ranked.texts), 1)
        started = time.process_time()
        scores = self._rank(ranked.images, mask, size)
        each = (time.process_time() - started) / pairs
        own = pair_macs(self.backbone.vlp, mask, self.plain.tokens)
        print(f"{name}: the engine takes {1000 * each:.3f} ms a pair, in batches of {size}, and {own:,} MACs", flush=True)
        return {
            "mask": name,
            "images": len(ranked.images),
            "texts": len(ranked.texts),
            "engine": {"seconds_per_pair": each, "batch_size": size, "macs_per_pair": own},
            "plain_pairs_timed": len(self.plain.pairs),
            "plain": {kind: self._compare(kind, mask, scores, each, own) for kind in KINDS},
        }

    def _rank(self, images: Sequence[ImageSource], mask: np.ndarray, batch_size: int) -> np.ndarray:
        backbone = self.backbone
        return rank(backbone.vlp, self.head, backbone.processor, images, self.ranked.texts, mask, batch_size)

    def _compare(self, kind: str, mask: np.ndarray, scores: np.ndarray, each: float, own: int) -> dict[str, Any]:
        """Time the plain forwards of a kind against the engine's seconds and MACs a pair."""
        plain, processor = self.plain, self.backbone.processor
        seconds, size = best_of(lambda size: plain(kind, size, mask), len(plain.pairs), self.repeats)
        difference = float(np.abs(plain(kind, size, mask) - scores[tuple(np.array(plain.at).T)]).max())
        tokens = processor.max_text_length if kind == "reference" else plain.tokens
        batch = meta_batch(tokens, processor.square().shape)
        macs = count_costs(self.backbone.vlp, batch, counting="paper").macs(mask)
        print(
            f"  {kind:12s} {seconds / each:5.2f} times as long ({1000 * seconds:.3f} ms a pair, in batches of {size}), "
            f"{macs / own:.2f} times the MACs, scores differ by at most {difference:.1e}",
            flush=True,
        )
        return {
            "seconds_per_pair": seconds,
            "batch_size": size,
            "macs_per_pair": macs,
            "ratio": seconds / each,
            "ratio_macs": macs / own,
            "largest_difference": difference,
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100, help="images to rank, with five captions each")
    parser.add_argument("--plain", type=int, default=512, help="pairs to time by plain forwards")
    parser.add_argument("--repeats", type=int, default=2, help="times that plain forwards are run; the best counts")
    parser.add_argument("--data-root", help="a data set in Karpathy's format; default: Shapes-captions")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    machine = describe_machine()
    torch.set_num_threads(1)
    backbone = load_backbone(ProblemConfig(task="retrieval", device="cpu"))
    head = new_head(backbone, RetrievalTask(backbone.processor)).eval()
    ranked = RetrievalTask.gallery(RetrievalTask.load_splits(options.data_root).test, options.images)
    contest = Contest(backbone, head, ranked, PlainForwards(backbone, head, ranked, options.plain), options.repeats)
    records = [contest.measure(name, np.isin(np.arange(12), skipped)) for name, skipped in MASKS.items()]
    if options.json:
        write_json(options.json, {"size": "mini", "machine": machine, "records": records})


if __name__ == "__main__":
    main()
