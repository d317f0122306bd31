"""How well SmolVLM-mini and LLaVA-mini answer the questions of Shapes: what `das_gym/assets/README.md` says, measured again.

    python -m benchmarks.answering
    python -m benchmarks.answering das_gym/assets/llava_mini
    python -m benchmarks.answering my_folder --questions 500 --json answering.json

Exact match in % on val2014, by question type: by greedy generation, with every picture replaced by an empty one, and what
the most frequent training answer to each exact question gets without any model. Two minutes on one core.
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
from PIL import Image

from benchmarks.pretrain.vlm.language import INSTRUCTION
from benchmarks.pretrain.vlm.tokenizer import messages
from das_gym.files import write_json
from das_gym.registration import ASSETS
from das_gym.shapes.vqa import shapes_root
from das_gym.tasks.vqa.accuracy import normalize_answer
from das_gym.tasks.vqa.examples import VQAExample
from das_gym.tasks.vqa.vqav2 import read_vqav2

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.processing_utils import ProcessorMixin

SMOLVLM_MINI = ASSETS / "smolvlm_mini"

ANSWER_TOKENS = 8
"""Longest answer that is generated."""

Pictures = Callable[[VQAExample], Image.Image]


@dataclass(frozen=True)
class Answerer:
    """A model with its processor.

    Attributes:
        model: In float32.
        processor: Pads on the left.
    """

    model: PreTrainedModel
    processor: ProcessorMixin

    @classmethod
    def load(cls, folder: str | Path) -> Answerer:
        """From a folder as `from_pretrained` reads it."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        return cls(model.eval(), AutoProcessor.from_pretrained(folder, local_files_only=True, padding_side="left"))

    @torch.inference_mode()
    def answers(self, questions: Sequence[str], pictures: Sequence[Image.Image]) -> list[str]:
        """What it says, one question a picture, by greedy generation."""
        pairs = zip(questions, pictures, strict=True)
        inputs = self.processor.apply_chat_template(
            [messages(question + INSTRUCTION, picture) for question, picture in pairs],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
        )
        said = self.model.generate(**inputs, do_sample=False, max_new_tokens=ANSWER_TOKENS)
        new = said[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)]

    def all_answers(
        self, examples: Sequence[VQAExample], batch_size: int = 64, picture: Pictures = lambda e: e.image.open()
    ) -> list[str]:
        """What it says to examples, batch by batch.

        Args:
            examples: Questions.
            batch_size: At a time.
            picture: What is shown to the model with a question.
        """
        said: list[str] = []
        for start in range(0, len(examples), batch_size):
            part = list(examples[start : start + batch_size])
            said += self.answers([example.question for example in part], [picture(example) for example in part])
        return said


def gray(example: VQAExample) -> Image.Image:
    """A picture of nothing, to blind the model with."""
    return Image.new("RGB", (96, 96), (220, 220, 220))


def exact_match(said: Sequence[str], examples: Sequence[VQAExample]) -> dict[str, float]:
    """Shares of the answers that are right after VQA's normalisation: `all`, and by question_type."""
    right: defaultdict[str, list[bool]] = defaultdict(list)
    for text, example in zip(said, examples, strict=True):
        for group in ("all", example.question_type):
            right[group].append(normalize_answer(text) == example.answer)
    return {group: sum(hits) / len(hits) for group, hits in right.items()}


def prior(train: Sequence[VQAExample]) -> Mapping[str, str]:
    """The most frequent training answer to each exact question: the best that can be known of it without the picture."""
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for example in train:
        counts[example.question][example.answer] += 1
    return {question: answers.most_common(1)[0][0] for question, answers in counts.items()}


def blind_answers(train: Sequence[VQAExample], examples: Sequence[VQAExample]) -> list[str]:
    """The prior's answer to each; to a question that it does not know, the most frequent answer to its question_type."""
    known = prior(train)
    kinds: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for example in train:
        kinds[example.question_type][example.answer] += 1
    return [known.get(example.question, kinds[example.question_type].most_common(1)[0][0]) for example in examples]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=SMOLVLM_MINI, help="the model; default: the bundled one")
    parser.add_argument("--questions", type=int, help="so many, drawn with a fixed seed; default: all of val2014")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    arguments = parser.parse_args(argv)
    root = shapes_root()
    train, val = read_vqav2(root, "train2014"), read_vqav2(root, "val2014")
    if arguments.questions is not None:
        drawn = np.random.default_rng(0).choice(len(val), min(arguments.questions, len(val)), replace=False)
        val = val.take(np.sort(drawn))
    answerer, examples = Answerer.load(arguments.folder), list(val)
    scores = {
        "answers": exact_match(answerer.all_answers(examples), examples),
        "empty pictures": exact_match(answerer.all_answers(examples, picture=gray), examples),
        "prior": exact_match(blind_answers(train, examples), examples),
    }
    print(f"{len(examples)} questions of val2014, exact match in %")
    print("".join(f"{group:>14}" for group in ("", *scores["answers"])))
    for name, score in scores.items():
        print(f"{name:>14}" + "".join(f"{100 * value:>14.1f}" for value in score.values()))
    if arguments.json:
        write_json(arguments.json, {"questions": len(examples), **scores})


if __name__ == "__main__":
    main()
