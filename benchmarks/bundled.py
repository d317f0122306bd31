"""Make the files that come with the bundled models, besides weights and tables, and measure the models' scores.

    python -m benchmarks.bundled checksums              das_gym/assets/checksums.json, after a bundled file changed
    python -m benchmarks.bundled references             the full model with adapters and the baseline of `python -m adapt`
    python -m benchmarks.bundled scores                 METER on VQA, with its supernet
    python -m benchmarks.bundled scores vilt_retrieval
    python -m benchmarks.bundled scores smolvlm_mini --questions 500        or llava_mini

`das_gym/assets/README.md` lists the scores. A supernet is evaluated as the full model on the test split, by group of
examples. A model that answers in words generates greedily; its accuracy in % on val2014 is printed by question type. Each is
evaluated a second time without the image: a supernet with the mean image, an answering model with a gray one. `prior` is the
most frequent training answer to each exact question. One to two minutes on one core.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from das_gym.adapt.evaluate import evaluate, with_mean_image
from das_gym.adapt.finetuning import new_subnet, reference_file, relevant_settings, train_subnet
from das_gym.adapt.report import BASELINE, FULL_MODEL
from das_gym.adapt.settings import TrainingConfig
from das_gym.adapt.step_loss import resolve_defaults
from PIL import Image

from benchmarks.harness import make_parser
from das_gym.files import ASSETS, CHECKSUMS, checksum, write_json
from das_gym.models.transformers.generation import generate
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_backbone, load_splits
from das_gym.problem.problem import Problem, load_problem
from das_gym.registration import ENVIRONMENTS, MODELS
from das_gym.shapes import bundled_root
from das_gym.tables.build import problem_hashes, table_examples
from das_gym.tables.table import SubnetTable
from das_gym.tasks.answering.examples import AnswerExample

HIDDEN = ("loss", "ranked_images", "ceiling", "blank")
"""Beginnings of the names of numbers that are not scores."""

Scores = dict[str, float]


@dataclass(frozen=True)
class GrayImage:
    """An image that shows nothing."""

    key: str = "gray"

    def fingerprint(self) -> str:
        """Return an empty text: the image never changes."""
        return ""

    def open(self) -> Image.Image:
        """Return the image."""
        return Image.new("RGB", (96, 96), (220, 220, 220))


def generated_answers(problem: Problem, examples: Sequence[AnswerExample]) -> list[str]:
    """Answer questions by greedy generation."""
    prompts = problem.task.pairs(examples)
    return generate(problem.vlp, problem.task.processor, prompts, "answers", batch_size=64)  # type: ignore[arg-type]


def accuracies(problem: Problem, examples: Sequence[AnswerExample], answers: Sequence[str]) -> Scores:
    """Return the accuracy of answers, for `all` and by question type."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for example, answer in zip(examples, answers, strict=True):
        for group in ("all", example.kind):
            found[group].append(problem.task.score_text(example, answer))
    return {group: float(np.mean(scores)) for group, scores in found.items()}


def prior_answers(train: Sequence[AnswerExample], examples: Sequence[AnswerExample]) -> list[str]:
    """Answer with the most frequent training answer to the question, or else to its question type."""
    by_question: defaultdict[str, Counter[str]] = defaultdict(Counter)
    by_type: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for example in train:
        by_question[example.question][example.answer] += 1
        by_type[example.kind][example.answer] += 1
    counters = (by_question.get(example.question) or by_type[example.kind] for example in examples)
    return [counter.most_common(1)[0][0] for counter in counters]


def answering_scores(checkpoint: str | None, questions: int | None, root: str | None = None) -> dict[str, Scores]:
    """Return the accuracy of a model's answers, with and without the image, and of the prior."""
    problem = load_problem(ProblemConfig(model="VLM", task="answering", checkpoint=checkpoint))
    train, val = (list(problem.task.load_part(root or bundled_root("vqa"), part)) for part in ("train2014", "val2014"))
    if questions is not None:
        chosen = np.random.default_rng(0).choice(len(val), min(questions, len(val)), replace=False)
        val = [val[place] for place in np.sort(chosen)]
    blind = [replace(example, images=(GrayImage(),)) for example in val]
    return {
        "answers": accuracies(problem, val, generated_answers(problem, val)),
        "empty images": accuracies(problem, val, generated_answers(problem, blind)),
        "prior": accuracies(problem, val, prior_answers(train, val)),
    }


def supernet_scores(problem_name: str) -> dict[str, Scores]:
    """Return the metrics of the full model of a supernet, with each image and with the mean image."""
    entry = next(entry for entry in ENVIRONMENTS.values() if entry.is_bundled and entry.short == problem_name)
    config = ProblemConfig(model=entry.model, task=entry.task)
    problem = load_problem(config)
    test = problem.splits.test
    subnet = new_subnet(config, np.zeros(len(problem.layer_names), dtype=bool))
    evaluations = {
        "full model": evaluate(subnet, test, "full model"),
        "mean image": evaluate(with_mean_image(subnet, test), test, "mean image"),
    }
    return {
        name: {key: value for key, value in evaluation.numbers.items() if not key.startswith(HIDDEN)}
        for name, evaluation in evaluations.items()
    }


def check_table(table: SubnetTable, problem: Problem) -> None:
    """Raise a ValueError for a table of another model, supernet or data; the message names what differs."""
    reward = table_examples(problem, "reward", table.meta.reward_examples)
    test = table_examples(problem, "test", table.meta.test_examples)
    hashes = problem_hashes(problem, reward, test, content=table.examples is not None)
    differing = [name for name in hashes if table.meta.hashes.get(name) != hashes[name]]
    if differing:
        words = "; ".join(f"{name} is {table.meta.hashes.get(name)} there and {hashes[name]} here" for name in differing)
        raise ValueError(f"this table of {table.meta.env_id} belongs to another problem: {words}. Make one for it.")


def bundled_files() -> dict[str, Path]:
    """Return every bundled file that has a checksum, by its path within `ASSETS`."""
    files = {path.relative_to(ASSETS).as_posix(): path for path in sorted(ASSETS.rglob("*")) if path.is_file()}
    return {name: path for name, path in files.items() if name not in ("checksums.json", "README.md")}


def write_checksums() -> Path:
    """Write the checksum of every bundled file."""
    write_json(CHECKSUMS, {name: checksum(path) for name, path in bundled_files().items()})
    return CHECKSUMS


def write_reference(name: str) -> Path:
    """Train the full model or the baseline of the default problem, from the seed."""
    problem = ProblemConfig()
    splits = load_splits(problem)
    nothing = np.zeros(len(load_backbone(problem).vlp.layers), dtype=bool)
    model = new_subnet(problem, nothing, adapters=name == FULL_MODEL)
    config, _ = resolve_defaults(TrainingConfig(), model)
    train_subnet(model, splits, config, f"fine-tuning, {name}")
    print(f"{name}: {100 * evaluate(model, splits.test, f'evaluating, {name}').metric:.2f} % on test")
    path = cast(Path, reference_file(problem, name))
    model.adaptation(settings=relevant_settings(problem, config)).save(path)
    return path


def main(argv: Sequence[str] | None = None) -> None:
    """Make files and print their paths, or measure and print one line per group, in %."""
    parser = make_parser("bundled", __doc__)
    supernets = [entry.short for entry in ENVIRONMENTS.values() if entry.is_bundled and entry.task != "answering"]
    answering = {"smolvlm_mini": None, **{name: name for name in MODELS["VLM"].named}}
    parser.add_argument("what", choices=("checksums", "references", "scores"))
    parser.add_argument("model", nargs="?", default="meter_vqa", choices=[*supernets, *answering])
    parser.add_argument("--questions", type=int, help="number of questions for an answering model; default: all")
    options = parser.parse_args(argv)
    if options.what == "checksums":
        print(write_checksums())
        return
    if options.what == "references":
        print(*map(write_reference, (FULL_MODEL, BASELINE)), sep="\n")
        return
    if options.model in supernets:
        scores = supernet_scores(options.model)
    else:
        scores = answering_scores(answering[options.model], options.questions)
    for group in next(iter(scores.values())):
        print(f"{group}: " + ", ".join(f"{name} {100 * score[group]:.1f}" for name, score in scores.items()))


if __name__ == "__main__":
    main()
