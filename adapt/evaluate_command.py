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
from dataclasses import dataclass
from typing import Any

import numpy as np
from das_gym.adapt.evaluate import NEW_TOKENS, Evaluation, evaluate, generate_texts, predict
from das_gym.adapt.settings import RANKED_IMAGES
from das_gym.adapt.subnets import (
    find_subnet,
    is_transformers_model,
    load_transformers_model,
    load_with_overrides,
    recorded_data,
)

from das_gym.commands.runs import RUNS_DIR, PluginSettings
from das_gym.commands.settings import PositiveInt, choice
from das_gym.drawing.table import Table
from das_gym.files import at_home, write_json
from das_gym.problem.config import ON_BAD_EXAMPLE
from das_gym.problem.loading import AdaptedModel, reader_options, reads_tokens, task_class
from das_gym.tasks.metrics import METRICS, score_texts


@dataclass(frozen=True)
class EvaluateSettings(PluginSettings):
    """The settings of `python -m adapt evaluate` and `predict`.

    Attributes:
        run: Id of a finished run, the folder of one, or a folder of a transformers model such as `adapt shrink` writes.
        split: Part of the data: `train`, `reward` or `test`. VQAv2 also has `train2014`, `val2014`, `test2015` and
            `test-dev2015`. Models that answer in words also take `questions`, a JSON-lines file in LLaVA's format for
            evaluation.
        data_root: Folder of the data. None uses the run's own.
        task: Task of a folder of a transformers model; runs have their own.
        columns: Columns of image, question and answer of parquet files, separated by commas. None finds them.
        context: Tokens of a window of text, for the task `text`. None uses the run's own, or 512.
        out: JSON file for the predictions. None writes none; `predict` needs one.
        method: Method whose model is used, for a run of `adapt compare`: `lora`, `das_4`, `random_4`, ...
        metric: Score of generated answers, see `das_gym.register_metric`; `evaluate` reports it besides the task's own.
        limit: Number of examples, the first ones of the split. None takes all.
        rank_images: Number of images that retrieval ranks, with all of their texts. None ranks all.
        max_new_tokens: Longest answer in words that `predict` generates, in tokens.
        on_bad_example: What to do with a damaged example: stop with an error, or skip it with a warning.
        device: Device of the model: `auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, ...
        checkpoint: Model that the run adapted, if it was moved since.
        runs_dir: Folder of all runs.
        trust_remote_code: Whether code in the checkpoint's folder may run, if the run was given that as well.
    """

    run: int | str
    split: str = "test"
    data_root: str | None = None
    task: str = "answering"
    columns: str | None = None
    context: PositiveInt | None = None
    out: str | None = None
    method: str | None = None
    metric: str | None = choice(None, METRICS, own=True)
    limit: PositiveInt | None = None
    rank_images: PositiveInt | None = RANKED_IMAGES
    max_new_tokens: PositiveInt = NEW_TOKENS
    on_bad_example: str = choice("raise", ON_BAD_EXAMPLE)
    device: str = "auto"
    checkpoint: str | None = None
    trust_remote_code: bool = False
    runs_dir: str = RUNS_DIR

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.out is not None and at_home(self.out).exists():
            raise FileExistsError(f"`out` exists: got {self.out}. Give another file.")

    def load(self) -> tuple[AdaptedModel, Sequence[Any], str | None]:
        """Return the model, the examples, and the folder of the data; None for the bundled data."""
        place, folder = find_subnet(self.run, self.runs_dir, self.method)
        recorded = recorded_data(folder) if self.data_root is None else {}
        data_root = recorded.get("data_root", self.data_root)
        if data_root is not None and not at_home(data_root).exists():
            raise FileNotFoundError(f"`data_root` does not exist: got {data_root}. Give the folder of the data.")
        if is_transformers_model(place):
            subnet = load_transformers_model(place, self.task, self.device, self.trust_remote_code)
        else:
            subnet = load_with_overrides(place, self.device, self.checkpoint, self.trust_remote_code)
        task = task_class(subnet.task.name)
        given = {name: getattr(self, name) or recorded.get(name) for name in ("columns", "context")}
        options = reader_options(task, given)
        if reads_tokens(task):
            options["tokenizer"] = subnet.task.processor.tokenizer
        examples = task.load_part(data_root, self.split, self.on_bad_example, **options)
        examples = examples[: self.limit]
        return subnet, examples, data_root


def evaluation_main(settings: EvaluateSettings) -> None:
    """Score the examples; print the numbers, and write the answers where asked for."""
    subnet, examples, data_root = settings.load()
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


def prediction_main(settings: EvaluateSettings) -> None:
    """Write the answers to the examples."""
    if settings.out is None:
        raise ValueError("predict needs a file to write answers to: pass out=answers.json")
    subnet, examples, _ = settings.load()
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
