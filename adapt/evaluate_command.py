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

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from das_gym.adapt.evaluate import Evaluation, evaluate, generate_texts, predict
from das_gym.adapt.finished_runs import EvaluateSettings, PredictSettings
from das_gym.adapt.subnets import load_finished

from das_gym.drawing.report import Table
from das_gym.files import write_json
from das_gym.problem.loading import AdaptedModel, reader_options, reads_tokens, task_class
from das_gym.registration import score_texts


def load(settings: EvaluateSettings) -> tuple[AdaptedModel, Sequence[Any], str | None]:
    """Return the model, the examples, and the folder of the data; None for the bundled data."""
    data_root = settings.data_setting("data_root")
    trusted = settings.trust_remote_code
    subnet = load_finished(settings.finished, settings.device, settings.checkpoint, trusted, settings.task)
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
    found = evaluate(subnet, examples, "evaluating", rank_images=settings.rank_images)
    if settings.metric is not None:
        found.predictions[:] = generated_scores(settings, subnet, examples)
        found.numbers[settings.metric] = float(np.mean([each[settings.metric] for each in found.predictions]))
    print_numbers(found, f"{found.examples:,} examples of {settings.split}, {data_root or 'bundled data'}")
    if settings.out is not None:
        write_json(settings.out, found.predictions)
        print(f"answers: {settings.out}")


def generated_scores(settings: EvaluateSettings, subnet: AdaptedModel, examples: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the generated answers to the examples with their scores by `metric`."""
    task, metric = subnet.task, settings.metric
    assert metric is not None
    if not task.generates:
        raise ValueError(f"`metric` scores answers in words, which {task.name} does not have: got {metric}. Leave it out.")
    texts = generate_texts(subnet, task.pairs(task.open_ended(examples)), "answering", settings.max_new_tokens)
    scores = score_texts(metric, examples, texts)
    return [
        {**task.format_generated(example, text), metric: score}
        for example, text, score in zip(examples, texts, scores.tolist(), strict=True)
    ]


def prediction_main(settings: PredictSettings) -> None:
    """Write the answers to the examples."""
    assert settings.out is not None
    subnet, examples, _ = load(settings)
    answers = predict(subnet, examples, "predicting", max_new_tokens=settings.max_new_tokens)
    write_json(settings.out, answers)
    print(f"{len(answers):,} answers: {settings.out}")


def print_numbers(found: Evaluation, title: str) -> None:
    """Print the task's numbers: shares in per cent, with the vocabulary's upper bound if known, and the loss in nats."""
    others = ("loss", "ranked_images", "ceiling", "blank", "perplexity")
    shares = {name: value for name, value in found.numbers.items() if name not in others}
    rows = tuple((name.replace("_", " "), f"{100 * value:.2f}") for name, value in shares.items())
    Table(("", "%"), rows, title).print()
    perplexity = found.numbers.get("perplexity")
    print(f"loss {found.loss:.4f} nats" + ("" if perplexity is None else f", perplexity {perplexity:.2f}"))
    if "ceiling" in found.numbers:
        print(f"at most {100 * found.numbers['ceiling']:.2f} %: the other answers are not in the vocabulary")
    if found.numbers.get("blank"):
        print(f"questions without an answer, which score 0: {found.numbers['blank']:,.0f}")
    if "ranked_images" in found.numbers:
        print(f"ranked images: {found.numbers['ranked_images']:,.0f}")
