"""Score and measure the full, the shrunk and the recovered model side by side."""

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from das_gym.adapt.hardware import free_bytes
from das_gym.adapt.report import ModelResult
from das_gym.adapt.shrinking.memory import GENERATE_BATCH_SIZE, answers_at_a_time, cached_values
from das_gym.adapt.shrinking.recovery import answer_states
from torch import Tensor

from das_gym.commands.progress import progress
from das_gym.commands.settings import build
from das_gym.engine.scores import format_examples
from das_gym.files import explain_damage, read_json, write_json
from das_gym.intervals import difference_interval, mean_interval
from das_gym.models.inputs import to_widest
from das_gym.models.transformers.generation import generate, generate_batch, greedy_settings
from das_gym.models.transformers.inputs import Encoding
from das_gym.models.transformers.model import VLM
from das_gym.problem.costs import Costs
from das_gym.problem.latency import Speedup, Spread, speedup
from das_gym.processes import is_main_process
from das_gym.registration import score_texts
from das_gym.summaries import Summary
from das_gym.tasks.base import Task

FULL, CONTROL, SHRUNK, RECOVERED = "full", "control", "shrunk", "recovered"

LIKELIHOOD_PAIRS = 64
"""Texts, or pairs of question and option, whose likelihood is computed at a time, see `Task.examples_for_pairs`."""

DECODED_TOKENS = 16
"""Number of tokens that are generated to time one of them."""

LATENCY_BLOCKS = 9
"""Timed blocks of each model."""


@dataclass(frozen=True)
class Quality:
    """How well a model answers.

    Attributes:
        loss: Mean negative log-likelihood of the reference answers' tokens, nats.
        score: Mean score of the answers, 0..1.
        low, high: Its 95 % interval.
        perplexity: Of text; None for other tasks.
        others: Means of `Task.other_metrics`; None without.
    """

    loss: float
    score: float
    low: float
    high: float
    perplexity: float | None = None
    others: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class ShrunkModelResult(Quality, ModelResult):
    """The measurements of one model: `full`, `shrunk` or `recovered`. Its record has times as [median, quartiles].

    Attributes:
        weight_bytes: Bytes of its weights as saved.
        kv_bytes: Bytes of keys and values in the cache per token, in the saved dtype.
        prefill_ms: Time to the first token of an answer, image included.
        decode_ms: Time of each further token.
        prefill_speedup, decode_speedup: Relative to the full model. None for the full model itself.
    """

    weight_bytes: int
    kv_bytes: int
    prefill_ms: Spread
    decode_ms: Spread
    prefill_speedup: Speedup | None = None
    decode_speedup: Speedup | None = None


class Scored(NamedTuple):
    """How well a model answers, with the answer to each example and its score, (n,) in 0..1."""

    quality: Quality
    texts: Sequence[str]
    scores: np.ndarray


@dataclass(frozen=True, repr=False)
class Measured(Summary):
    """The results of all models on the same examples, the full model first and the saved model last.

    `scored` may also have `CONTROL`, the full model after the same training as the saved one.
    """

    rows: dict[str, ShrunkModelResult]
    scored: Mapping[str, Scored]
    metric: str

    def facts(self) -> dict[str, str]:
        """Return score, loss, size and speed of each model in words, by name."""
        found = {}
        for name, row in self.rows.items():
            speed = row.decode_speedup
            faster = "" if speed is None else f", {speed.ratio:.2f} times as fast ({speed.low:.2f} to {speed.high:.2f})"
            saved = f"{row.parameters:,} parameters, {100 * row.macs_saved:.1f} % of the MACs saved"
            found[name] = f"{100 * row.score:.1f} % {self.metric}, loss {row.loss:.4f} nats, {saved}{faster}"
        return found

    @property
    def control(self) -> Quality | None:
        """How well the control answers; None without one."""
        return self.scored[CONTROL].quality if CONTROL in self.scored else None

    @property
    def final(self) -> ShrunkModelResult:
        """The result of the saved model."""
        return list(self.rows.values())[-1]

    @property
    def reference(self) -> str:
        """The model to compare with: the control if training made it better than the full model, else the full model."""
        return CONTROL if self.control is not None and self.control.score > self.rows[FULL].score else FULL

    def difference(self) -> tuple[float, float, float]:
        """Return the saved model's score minus that of `reference`, and its 95 % interval over examples."""
        differences = self.scored[self.final.name].scores - self.scored[self.reference].scores
        return (float(differences.mean()), *difference_interval(differences))

    def loss_regained(self) -> float | None:
        """Return the fraction of the loss increase that recovery removed; None if the loss did not increase."""
        losses = [self.rows[name].loss for name in (FULL, SHRUNK, RECOVERED) if name in self.rows]
        if len(losses) < 3 or losses[1] <= losses[0]:
            return None
        return (losses[1] - losses[2]) / (losses[1] - losses[0])


def measure(
    models: Mapping[str, VLM],
    scored: Mapping[str, Scored],
    costs: Mapping[str, Costs],
    mask: np.ndarray,
    task: Task,
    test: Sequence[Any],
    dtypes: Mapping[str, torch.dtype],
    metric: str | None = None,
) -> Measured:
    """Measure costs and latency of models on the first test example, and add their scores.

    Args:
        models: The full model first, and those without the layers of the mask; the names are those of results.
        scored: What `score_model` returned for each model.
        costs: Of the full model under a mask, by `full`, and by `recovered` too if that has adapters.
        mask: (n_units,) bool, True = removed.
        task: Makes the prompt that is timed.
        test: The test examples.
        dtypes: Number format of each model's weights as saved.
        metric: The metric of the scores; None is the task's own.
    """
    processor: Any = task.processor
    prompt = task.generation_prompt(task.open_ended(test[:1])[0])
    # without adapters, the recovered model has the shrunk model's architecture, which is timed once
    timed = {name: vlm for name, vlm in models.items() if name != RECOVERED or RECOVERED in costs}
    times = token_latencies(timed, processor, prompt, LATENCY_BLOCKS)
    rows = {}
    for name, vlm in models.items():
        own_mask = np.zeros_like(mask) if name == FULL else mask
        own_costs = costs.get(name, costs[FULL])
        own_times = times.get(name, times[SHRUNK])
        speedups = [None if name == FULL else speedup(*pair) for pair in zip(own_times, times[FULL], strict=True)]
        parameters = sum(p.numel() for p in vlm.model.parameters())
        rows[name] = ShrunkModelResult(
            name,
            parameters,
            **asdict(scored[name].quality),
            weight_bytes=parameters * dtypes[name].itemsize,
            macs=own_costs.macs(own_mask),
            macs_saved=own_costs.macs_saved(own_mask),
            kv_bytes=cached_values(vlm, processor, prompt) * dtypes[SHRUNK].itemsize,
            prefill_ms=Spread.from_values(own_times[0]),
            decode_ms=Spread.from_values(own_times[1]),
            prefill_speedup=speedups[0],
            decode_speedup=speedups[1],
        )
    return Measured(rows, scored, (metric or task.metric_name).replace("_", " "))


def score_once(
    path: Path | None, vlm: VLM, task: Task, examples: Sequence[Any], title: str, metric: str | None = None
) -> Scored:
    """Score a model; a resumed run reads the scores from a file, if that is kept: answers of a large model take minutes."""
    if path is None:
        return score_model(vlm, task, examples, title, metric)
    kept = read_json(path) if path.is_file() else {}
    if title in kept:
        with explain_damage(path, "remove it, and resume again"):
            quality = build(Quality, kept[title]["quality"])
            return Scored(quality, list(kept[title]["texts"]), np.array(kept[title]["scores"]))
    scored = score_model(vlm, task, examples, title, metric)
    if is_main_process() and math.isfinite(scored.quality.loss):
        kept[title] = {**scored._asdict(), "quality": asdict(scored.quality)}
        write_json(path, kept, indent=None)
    return scored


def score_model(vlm: VLM, task: Task, examples: Sequence[Any], title: str, metric: str | None = None) -> Scored:
    """Score a model's answers, by a metric of `register_metric` or, with None, the task's own."""
    if not task.generates:
        return _score_likelihoods(vlm, task, examples, title)
    open_ended = task.open_ended(examples)
    processor = cast(Any, task.processor)
    prompts: Any = task.pairs(open_ended)
    loss = mean_loss(vlm, task, open_ended, GENERATE_BATCH_SIZE, f"loss, {title}")
    size = answers_at_a_time(vlm, processor, prompts, free_bytes(vlm), GENERATE_BATCH_SIZE)
    texts = generate(vlm, processor, prompts, f"answers, {title}", size)
    if metric is None:
        scores = np.array([task.score_text(e, text) for e, text in zip(examples, texts, strict=True)], dtype=np.float64)
    else:
        scores = score_texts(metric, examples, texts)
    return Scored(Quality(loss, float(scores.mean()), *mean_interval(scores)), texts, scores)


@torch.no_grad()
def _score_likelihoods(vlm: VLM, task: Task, examples: Sequence[Any], title: str) -> Scored:
    losses: list[float] = []
    scores: list[float] = []
    texts: list[str] = []
    others: defaultdict[str, list[float]] = defaultdict(list)
    size = task.examples_for_pairs(LIKELIHOOD_PAIRS)
    for chunk, logits, own in scored_batches(vlm, task, examples, size, f"likelihoods, {title}"):
        targets = {name: t.to(vlm.device) for name, t in task.targets(chunk).items()}
        losses += own.tolist()
        scores += task.metrics(logits, targets).tolist()
        for name, values in task.other_metrics(logits, targets).items():
            others[name] += values.tolist()
        pairs = zip(chunk, task.predictions(chunk, logits), strict=True)
        texts += [task.format_prediction(example, prediction) for example, prediction in pairs]
    metrics = np.array(scores)
    numbers = task.summary(examples, np.array(losses), metrics)
    means = {name: float(np.mean(values)) for name, values in others.items()}
    quality = Quality(numbers["loss"], float(metrics.mean()), *mean_interval(metrics), numbers.get("perplexity"), means)
    return Scored(quality, texts, metrics)


@torch.no_grad()
def mean_loss(vlm: VLM, task: Task, examples: Sequence[Any], batch_size: int, title: str) -> float:
    """Return the mean loss of the reference answers by the model's own forward, nats. Examples are of `Task.open_ended`."""
    total = 0.0
    for _, _, losses in scored_batches(vlm, task, examples, batch_size, title):
        total += float(to_widest(losses).sum())
    return total / len(examples)


def scored_batches(
    vlm: VLM, task: Task, examples: Sequence[Any], batch_size: int, title: str
) -> Iterator[tuple[Sequence[Any], Tensor, Tensor]]:
    """Yield batches of examples with logits and (batch,) losses in nats of the model's own forward, if they are finite."""
    head = vlm.language_head()
    with progress(len(examples), title, unit="example") as bar:
        for start in range(0, len(examples), batch_size):
            chunk = examples[start : start + batch_size]
            targets = {name: t.to(vlm.device) for name, t in task.targets(chunk).items()}
            logits = head(answer_states(vlm, task, chunk))
            losses = task.losses(logits, targets)
            broken = [e.key for e, finite in zip(chunk, losses.isfinite().tolist(), strict=True) if not finite]
            if broken:
                raise FloatingPointError(
                    f"the {title} is not finite on {format_examples(broken)}. Try `dtype=float32`, a lower `learning_rate`, "
                    "or another mask."
                )
            yield chunk, logits, losses
            bar.update(len(chunk))


def token_latencies(
    models: Mapping[str, VLM], processor: Any, prompt: Any, blocks: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return (blocks,) milliseconds of the first token and of each further token, by model. Models take turns."""
    encoding = processor.encode(prompt, pixels=True)
    count = 1 + DECODED_TOKENS

    def times_of(vlm: VLM) -> np.ndarray:
        return 1000 * time_tokens(vlm, processor, [encoding], greedy_settings(vlm, processor, count, least=count))

    for vlm in models.values():
        times_of(vlm)  # the first generation takes longer
    times = np.array([[times_of(vlm) for vlm in models.values()] for _ in range(blocks)])  # (blocks, models, tokens)
    return {name: (times[:, n, 0], times[:, n, 1:].mean(axis=1)) for n, name in enumerate(models)}


class TokenClock:
    """The times at which transformers' `generate` has the prompt, and then each token; it expects this interface."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _: object) -> None:
        """Note the time; the tokens are on the CPU by then."""
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Do nothing after the last token."""


def time_tokens(vlm: VLM, processor: Any, encodings: Sequence[Encoding], settings: Mapping[str, Any]) -> np.ndarray:
    """Return (tokens,) seconds that each token of a batch's answers takes, the first with prompt and images."""
    clock = TokenClock()
    start = time.perf_counter()
    generate_batch(vlm, processor, encodings, settings, streamer=clock)
    # `generate` puts the prompt before the first token.
    return np.diff([start, *clock.times[1:]])
