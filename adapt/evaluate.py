"""Score a fine-tuned subnet on any part of the data (`evaluate`), or write its answers (`predict`).

python -m adapt evaluate with run=2
python -m adapt evaluate with run=smaller split=val2014 data_root=/data/vqav2 out=answers.json
python -m adapt predict with run=2 split=test-dev2015 data_root=/data/vqav2 out=answers.json
python -m adapt evaluate with run=5 method=lora

`evaluate` prints the scores. `out` is a JSON file with one object per example, in the format of the task's evaluation
server: `question_id` and `answer` for VQA, `identifier` and `prediction` for NLVR2. `predict` needs no reference answers and
computes no scores. Models that answer in words generate their answers greedily in `predict`. In `evaluate` they choose among
the options of the question; without options the file holds the likeliest token at each position of the reference answer, as
`teacher_forced`. With `metric=NAME` they generate in `evaluate` too, and the file holds answers and scores.
"""

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from das_gym.adapt.finished_runs import NEW_TOKENS, EvaluateSettings, PredictSettings
from das_gym.adapt.settings import RANKED_IMAGES
from das_gym.adapt.subnets import load_finished
from torch import Tensor

from das_gym.commands.progress import progress
from das_gym.drawing.report import Table
from das_gym.engine.caches import EncoderCache
from das_gym.engine.scores import format_examples, format_mask
from das_gym.files import write_json
from das_gym.problem.loading import AdaptedModel, reader_options, reads_tokens, task_class
from das_gym.registration import MODELS, find_class, score_texts

BATCH_PAIRS = 128
"""Largest number of pairs of text and image in a batch."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of a subnet on a set of examples.

    Attributes:
        metric: The task's metric, 0..1.
        loss: Mean loss, nats.
        numbers: All numbers of the task, these two among them; see `Task.summary`.
        predictions: The answer to each example, see `Task.predictions`.
        metrics: The metric of each example.
    """

    metric: float
    metric_name: str
    loss: float
    numbers: dict[str, float]
    examples: int
    predictions: list[dict[str, Any]] = field(default_factory=list, repr=False)
    metrics: list[float] = field(default_factory=list, repr=False)


def with_mean_image(subnet: AdaptedModel, examples: Sequence[Any]) -> AdaptedModel:
    """Return a subnet that sees the mean of the examples' images, which have one size, in place of every image."""
    task = copy.copy(subnet.task)
    sources = {pair.image.key: pair.image for pair in task.pairs(examples)}
    mean: Any = sum(task.processor.image(sources[key]) for key in sorted(sources)) / len(sources)
    task.processor = replace(task.processor, transform=lambda *_: mean, ahead={})
    return replace(subnet, task=task)


@torch.inference_mode()
def evaluate(
    subnet: AdaptedModel,
    examples: Sequence[Any],
    title: str,
    rank_images: int | None = RANKED_IMAGES,
    encoder_cache: EncoderCache | None = None,
) -> Evaluation:
    """Evaluate examples; a retrieval task also ranks its texts with up to `rank_images` images (None = all).

    `encoder_cache` is a cache of the same frozen encoders; None runs them without one.
    """
    task = subnet.task
    device = subnet.backbone.vlp.device
    rows: list[tuple[float, float]] = []
    predictions: list[dict[str, Any]] = []
    others: defaultdict[str, list[float]] = defaultdict(list)
    for chunk, logits in batches_with_logits(subnet, examples, title, encoder_cache):
        targets = {name: t.to(device) for name, t in task.targets(chunk).items()}
        losses = task.losses(logits, targets)
        metrics = task.metrics(logits, targets)
        _check_finite(subnet, chunk, ~(losses.isfinite() & metrics.isfinite()))
        rows += zip(losses.tolist(), metrics.tolist(), strict=True)
        for name, values in task.other_metrics(logits, targets).items():
            others[name] += values.tolist()
        predictions += task.predictions(chunk, logits)
    losses, metrics = np.array(rows).T
    numbers = task.summary(examples, losses, metrics)
    numbers |= {name: float(np.mean(values)) for name, values in others.items()}
    gallery = task.gallery(examples, rank_images)
    if gallery is not None:  # every text with every image, which takes longer than all the rest
        from das_gym.engine.ranking import recalls, score_pairs

        images = gallery.images
        texts = gallery.texts
        with progress(len(images) * len(texts), f"{title}, ranking", unit="pair") as bar:
            scores = score_pairs(subnet.backbone.vlp, subnet.head, task.processor, images, texts, progress=bar.update)
        # recall at 1, 5 and 10 both ways: tr_r1, ..., ir_r10
        numbers |= {**recalls(scores, gallery.image_of_text), "ranked_images": float(len(images))}
    metric = numbers[task.metric_name]
    return Evaluation(metric, task.metric_name, numbers["loss"], numbers, len(rows), predictions, metrics.tolist())


@torch.inference_mode()
def predict(
    subnet: AdaptedModel, examples: Sequence[Any], title: str, max_new_tokens: int = NEW_TOKENS
) -> list[dict[str, Any]]:
    """Return the answers of a subnet to examples, which need no labels; see `Task.predictions`, and `evaluate`."""
    task = subnet.task
    prompts = [task.generation_prompt(example) for example in examples]
    to_classify = [example for example, prompt in zip(examples, prompts, strict=True) if prompt is None]
    to_generate = [prompt for prompt in prompts if prompt is not None]
    # Answers come back in the order of the examples, whichever way each was made.
    texts = iter(generate_texts(subnet, to_generate, title, max_new_tokens) if to_generate else ())
    batches = batches_with_logits(subnet, to_classify, title) if to_classify else ()
    classes = iter([row for chunk, logits in batches for row in task.predictions(chunk, logits)])
    return [
        next(classes) if prompt is None else task.format_generated(example, next(texts))
        for example, prompt in zip(examples, prompts, strict=True)
    ]


def generate_texts(subnet: AdaptedModel, prompts: Sequence[Any], title: str, max_new_tokens: int) -> list[str]:
    """Return the answers of a model to prompts; TypeError: it cannot generate."""
    vlp = subnet.backbone.vlp
    entry = next((entry for entry in MODELS.values() if entry.generate and isinstance(vlp, find_class(entry.vlp))), None)
    if entry is None:
        raise TypeError(
            f"a {type(vlp).__name__} cannot generate answers. Register a function that does, as `ModelEntry(generate=...)`."
        )
    return find_class(entry.generate)(vlp, subnet.task.processor, prompts, title, max_new_tokens)


def batches_with_logits(
    subnet: AdaptedModel, examples: Sequence[Any], title: str, encoder_cache: EncoderCache | None = None
) -> Iterator[tuple[Sequence[Any], Tensor]]:
    """Yield batches of examples with their logits; see `evaluate`."""
    subnet.head.eval()
    task = subnet.task
    vlp = subnet.backbone.vlp
    step = task.examples_for_pairs(BATCH_PAIRS)
    with progress(len(examples), title, unit="example") as bar:
        for start in range(0, len(examples), step):
            chunk = examples[start : start + step]
            pairs = task.pairs(chunk)
            if encoder_cache is None:
                features = vlp.make_forward(task.processor, pairs)()
            else:
                features = vlp.forward_encoded(encoder_cache(pairs))
            logits = subnet.head(task.group_features(features))
            largest = logits.reshape(len(logits), -1).amax(1)  # small compared with a vocabulary of logits; keeps NaN
            _check_finite(subnet, chunk, largest.isnan() | largest.isposinf())
            yield chunk, logits
            bar.update(len(chunk))


def _check_finite(subnet: AdaptedModel, examples: Sequence[Any], broken: Tensor) -> None:
    """Raise FloatingPointError if any of (rows,) bool is true; a row is an example, unless there are more rows."""
    rows = broken.tolist()
    if not any(rows):
        return
    keys = [e.key for e, bad in zip(examples, rows, strict=False) if bad or len(rows) != len(examples)]
    raise FloatingPointError(
        f"the outputs of {format_mask(subnet.backbone.vlp.check_mask(None))} are NaN or infinite, on "
        f"{format_examples(keys)}. Use float32, or train at a lower learning rate"
    )


def load(settings: EvaluateSettings) -> tuple[AdaptedModel, Sequence[Any], str | None]:
    """Return the model, the examples, and the folder of the data; None for the bundled data."""
    data_root = settings.data_setting("data_root")
    subnet = load_finished(settings, settings.device, settings.task)
    task = task_class(subnet.task.name)
    options = reader_options(task, {name: settings.data_setting(name) for name in ("columns", "context")})
    if reads_tokens(task):
        options["tokenizer"] = subnet.task.processor.tokenizer
    examples = task.load_part(data_root, settings.split, settings.on_bad_example, **options)
    return subnet, examples[: settings.limit], data_root


def evaluation_main(settings: EvaluateSettings) -> None:
    """Score the examples; print the numbers, and write the answers where asked for."""
    subnet, examples, data_root = load(settings)
    if not subnet.task.is_labelled(examples):
        raise ValueError(f"split={settings.split} has no answers to compare with: use `adapt predict`")
    if settings.metric is not None and not subnet.task.generates:
        raise ValueError(
            f"`metric` scores answers in words, which {subnet.task.name} does not have: got {settings.metric}. Leave it out."
        )
    found = evaluate(subnet, examples, "evaluating", rank_images=settings.rank_images)
    if settings.metric is not None:
        found.predictions[:] = _generated_scores(settings, subnet, examples)
        found.numbers[settings.metric] = float(np.mean([each[settings.metric] for each in found.predictions]))
    _print_numbers(found, f"{found.examples:,} examples of {settings.split}, {data_root or 'bundled data'}")
    if settings.out is not None:
        write_json(settings.out, found.predictions)
        print(f"answers: {settings.out}")


def _generated_scores(settings: EvaluateSettings, subnet: AdaptedModel, examples: Sequence[Any]) -> list[dict[str, Any]]:
    task = subnet.task
    metric = settings.metric
    assert metric is not None
    texts = generate_texts(subnet, task.pairs(task.open_ended(examples)), "answering", settings.max_new_tokens)
    scores = score_texts(metric, examples, texts)
    return [
        {**task.format_generated(example, text), metric: score}
        for example, text, score in zip(examples, texts, scores.tolist(), strict=True)
    ]


def prediction_main(settings: PredictSettings) -> None:
    """Write the answers of a finished run's model to the file `out`, without scores."""
    assert settings.out is not None
    subnet, examples, _ = load(settings)
    answers = predict(subnet, examples, "predicting", max_new_tokens=settings.max_new_tokens)
    write_json(settings.out, answers)
    print(f"{len(answers):,} answers: {settings.out}")


def _print_numbers(found: Evaluation, title: str) -> None:
    others = ("loss", "ranked_images", "ceiling", "blank", "perplexity")
    shares = {name: value for name, value in found.numbers.items() if name not in others}
    rows = tuple((name.replace("_", " "), f"{100 * value:.2f}") for name, value in shares.items())
    Table(("", "%"), rows, title).print()
    perplexity = found.numbers.get("perplexity")
    print(f"loss {found.loss:.4f} nats" + ("" if perplexity is None else f", perplexity {perplexity:,.2f}"))
    if found.numbers.get("ceiling", 1) < 1:
        print(f"at most {100 * found.numbers['ceiling']:.2f} %: the other answers are not in the vocabulary")
    if found.numbers.get("blank"):
        print(f"questions without an answer, which score 0: {found.numbers['blank']:,.0f}")
    if "ranked_images" in found.numbers:
        print(f"ranked images: {found.numbers['ranked_images']:,.0f}")
