"""Measure the scores of the bundled models that `das_gym/assets/README.md` lists.

    python -m benchmarks.bundled_scores                     METER on VQA, with its supernet
    python -m benchmarks.bundled_scores vilt_retrieval
    python -m benchmarks.bundled_scores smolvlm_mini        or llava_mini, or a folder
    python -m benchmarks.bundled_scores smolvlm_mini --questions 500

A supernet is evaluated as the full model on the test split, by group of examples. A model that answers in words generates
greedily; its exact match in % on val2014 is printed by question type. Each is evaluated a second time without the image:
a supernet with the mean image, an answering model with a gray one. `prior` is the most frequent training answer to each
exact question. One to two minutes on one core.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from das_gym.adapt.evaluate import evaluate, mean_image
from das_gym.adapt.finetune import cut_subnet
from PIL import Image

from benchmarks.pretrain.questions import INSTRUCTION
from benchmarks.pretrain.tokenizer import messages
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_problem
from das_gym.registration import ASSETS, ENVIRONMENTS
from das_gym.shapes.vqa import shapes_root
from das_gym.tasks.vqa.accuracy import normalize_answer
from das_gym.tasks.vqa.examples import VQAExample
from das_gym.tasks.vqa.vqav2 import read_vqav2

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.processing_utils import ProcessorMixin

MAX_NEW_TOKENS = 8

HIDDEN = ("loss", "ranked_images", "ceiling", "blank")
"""Beginnings of the names of numbers that are not scores."""

ImageOf = Callable[[VQAExample], Image.Image]


@dataclass(frozen=True)
class Answerer:
    """A model that answers in words, with its processor.

    Attributes:
        model: In float32.
        processor: Pads on the left.
    """

    model: PreTrainedModel
    processor: ProcessorMixin

    @classmethod
    def load(cls, folder: str | Path) -> Answerer:
        """Load a folder that `from_pretrained` reads."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        return cls(model.eval(), AutoProcessor.from_pretrained(folder, local_files_only=True, padding_side="left"))

    @torch.inference_mode()
    def answers(
        self, examples: Sequence[VQAExample], batch_size: int = 64, image: ImageOf = lambda example: example.image.open()
    ) -> list[str]:
        """Answer questions by greedy generation.

        Args:
            examples: Questions.
            batch_size: Questions per batch.
            image: The image that the model gets with a question.
        """
        answers: list[str] = []
        for start in range(0, len(examples), batch_size):
            inputs = self.processor.apply_chat_template(
                [messages(e.question + INSTRUCTION, image(e)) for e in examples[start : start + batch_size]],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                padding=True,
            )
            output = self.model.generate(**inputs, do_sample=False, max_new_tokens=MAX_NEW_TOKENS)
            new_tokens = output[:, inputs["input_ids"].shape[1] :]
            answers += [text.strip() for text in self.processor.batch_decode(new_tokens, skip_special_tokens=True)]
        return answers


def gray(example: VQAExample) -> Image.Image:
    """Return an empty image."""
    return Image.new("RGB", (96, 96), (220, 220, 220))


def exact_match(answers: Sequence[str], examples: Sequence[VQAExample]) -> dict[str, float]:
    """Return the share of right answers after VQA's normalization, for `all` and by question type."""
    right: defaultdict[str, list[bool]] = defaultdict(list)
    for text, example in zip(answers, examples, strict=True):
        for group in ("all", example.question_type):
            right[group].append(normalize_answer(text) == example.answer)
    return {group: sum(hits) / len(hits) for group, hits in right.items()}


def prior_answers(train: Sequence[VQAExample], examples: Sequence[VQAExample]) -> list[str]:
    """Answer with the most frequent training answer to the question, or else to its question type."""
    by_question: defaultdict[str, Counter[str]] = defaultdict(Counter)
    by_type: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for example in train:
        by_question[example.question][example.answer] += 1
        by_type[example.question_type][example.answer] += 1
    counters = (by_question.get(example.question) or by_type[example.question_type] for example in examples)
    return [counter.most_common(1)[0][0] for counter in counters]


def answering_scores(folder: Path, questions: int | None) -> dict[str, dict[str, float]]:
    """Return exact match of a model's answers, with and without the image, and of the prior."""
    root = shapes_root()
    train, val = read_vqav2(root, "train2014"), read_vqav2(root, "val2014")
    if questions is not None:
        chosen = np.random.default_rng(0).choice(len(val), min(questions, len(val)), replace=False)
        val = val.take(np.sort(chosen))
    answerer, examples = Answerer.load(folder), list(val)
    return {
        "answers": exact_match(answerer.answers(examples), examples),
        "empty images": exact_match(answerer.answers(examples, image=gray), examples),
        "prior": exact_match(prior_answers(train, examples), examples),
    }


def supernet_scores(problem_name: str) -> dict[str, dict[str, float]]:
    """Return the metrics of the full model of a supernet, with each image and with the mean image."""
    entry = next(entry for entry in ENVIRONMENTS.values() if entry.bundled and entry.short == problem_name)
    config = ProblemConfig(model=entry.model, task=entry.task)
    problem = load_problem(config)
    test = problem.splits.test
    subnet = cut_subnet(config, np.zeros(len(problem.layer_names), dtype=bool))
    evaluations = {
        "full model": evaluate(subnet, test, "full model"),
        "mean image": evaluate(subnet, test, "mean image", blind=mean_image(subnet, test)),
    }
    return {
        name: {key: value for key, value in evaluation.numbers.items() if not key.startswith(HIDDEN)}
        for name, evaluation in evaluations.items()
    }


def print_scores(scores: Mapping[str, Mapping[str, float]]) -> None:
    """Print one line per group, in %."""
    for group in next(iter(scores.values())):
        values = ", ".join(f"{name} {100 * score[group]:.1f}" for name, score in scores.items())
        print(f"{group}: {values}")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    supernets = [entry.short for entry in ENVIRONMENTS.values() if entry.bundled and entry.task != "answering"]
    parser.add_argument(
        "model", nargs="?", default="meter_vqa", help=f"a checkpoint folder, or one of {', '.join(supernets)}"
    )
    parser.add_argument("--questions", type=int, help="number of questions for an answering model; default: all")
    arguments = parser.parse_args(argv)
    if arguments.model in supernets:
        scores = supernet_scores(arguments.model)
    else:
        bundled = ASSETS / arguments.model
        scores = answering_scores(bundled if bundled.is_dir() else Path(arguments.model), arguments.questions)
    print_scores(scores)


if __name__ == "__main__":
    main()
