"""Visual question answering: which of the data set's frequent answers is right?"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from das_gym.data.entries import BadExamples
from das_gym.data.splits import Splits
from das_gym.models.inputs import Pair, Processor
from das_gym.names import PARTS
from das_gym.shapes import bundled_root
from das_gym.tasks.base import Task, build_classifier
from das_gym.tasks.vqa.accuracy import normalize_answer, soft_score, vqa_accuracy
from das_gym.tasks.vqa.files import TABLES, VQAExample, answer_vocabulary, load_vqa, read_vqav2


class VQATask(Task):
    """VQA as VQAv2 defines it: soft scores to train on, the official accuracy to report. `labels` are the answers."""

    name = "vqa"
    pretrained_head = "vqa_classifier"

    def __init__(self, processor: Processor, labels: Sequence[str] = ()) -> None:
        super().__init__(processor, labels)
        self._index = {answer: i for i, answer in enumerate(self.labels)}

    @classmethod
    def load_splits(cls, data_root: str | Path | None, on_bad_example: str = "raise") -> Splits[VQAExample]:
        """Read VQAv2's files, or arrow tables; None is Shapes-VQA."""
        return load_vqa(bundled_root("vqa") if data_root is None else data_root, on_bad_example)

    @classmethod
    def load_part(
        cls, data_root: str | Path | None, part: str, on_bad_example: str = "raise", **options: Any
    ) -> Sequence[VQAExample]:
        """Return a part; of VQAv2's files also `train2014`, `val2014`, `test2015` and `test-dev2015`, each alone."""
        root = bundled_root("vqa") if data_root is None else data_root
        if part in PARTS or TABLES.is_in(root):
            return super().load_part(data_root, part, on_bad_example, **options)
        return read_vqav2(root, part, BadExamples(on_bad_example))

    @classmethod
    def format_of(cls, root: Path) -> str:
        return "VQAv2" if any(root.glob("*mscoco_*_questions.json")) or any(root.glob("vqav2_*.arrow")) else ""

    @classmethod
    def is_labelled(cls, examples: Sequence[VQAExample]) -> bool:
        """Return True if the examples have annotators' answers; those of `test2015` are not public."""
        return any(example.answers for example in itertools.islice(examples, 100))

    @classmethod
    def choose_labels(cls, splits: Splits[VQAExample], min_count: int | None = None) -> tuple[str, ...]:
        """Return the frequent answers of train and val together, see `das_gym.tasks.vqa.files.answer_vocabulary`."""
        return answer_vocabulary(splits.train, splits.reward, splits.test, min_count=min_count)

    def pairs(self, examples: Sequence[VQAExample]) -> list[Pair]:
        return [Pair(e.question, e.image) for e in examples]

    def targets(self, examples: Sequence[VQAExample]) -> dict[str, Tensor]:
        """Return soft `scores` to train on and the `accuracy` of each answer, both (batch, answers) float32."""
        scores = torch.zeros(len(examples), len(self.labels))
        accuracy = torch.zeros_like(scores)
        for row, example in enumerate(examples):
            for answer, count in Counter(map(normalize_answer, example.answers)).items():
                column = self._index.get(answer)
                if column is not None:
                    scores[row, column] = soft_score(count)
                    accuracy[row, column] = vqa_accuracy(answer, example.answers)
        return {"scores": scores, "accuracy": accuracy}

    def build_head(self, feature_size: int, head_size: int | None = None) -> nn.Module:
        return build_classifier(feature_size, len(self.labels), head_size or feature_size)

    def losses(self, logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """Return the binary cross-entropy summed over answers, (batch,), in nats: METER's VQA loss before its mean."""
        return F.binary_cross_entropy_with_logits(logits, targets["scores"].to(logits), reduction="none").sum(-1)

    def metrics(self, logits: Tensor, targets: dict[str, Tensor]) -> Tensor:
        """Return the official VQA accuracy of the answer with the largest logit, (batch,), 0..1."""
        return targets["accuracy"].to(logits).gather(-1, logits.argmax(-1, keepdim=True)).squeeze(-1)

    def divergences(self, logits: Tensor, full_logits: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        """Return KL(full || subnet) between Bernoulli distributions, summed over answers, (batch,), in nats."""
        full = full_logits.sigmoid()
        yes = F.logsigmoid(full_logits) - F.logsigmoid(logits)
        no = F.logsigmoid(-full_logits) - F.logsigmoid(-logits)
        return (full * yes + (1 - full) * no).sum(-1)

    def predictions(self, examples: Sequence[VQAExample], logits: Tensor) -> list[dict[str, Any]]:
        """Return `question_id` and `answer`, as VQA's evaluation server takes them."""
        answers = [self.labels[number] for number in logits.argmax(-1).tolist()]
        return [{"question_id": e.question_id, "answer": answer} for e, answer in zip(examples, answers, strict=True)]

    def reference(self, example: VQAExample) -> str:
        """Return the annotators' answers, the most frequent first, with counts where they differ."""
        counts = Counter(example.answers).most_common()
        return counts[0][0] if len(counts) == 1 else ", ".join(f"{answer} ({count})" for answer, count in counts)

    def group(self, example: VQAExample) -> str:
        return example.question_type

    def summary(self, examples: Sequence[VQAExample], losses: np.ndarray, metrics: np.ndarray) -> dict[str, float]:
        """Return the mean loss, and the accuracy: overall, by `question/<type>` and by `answer/<type>`.

        `ceiling` is the best accuracy that this vocabulary allows; `blank` counts the questions that no annotator answered,
        which score 0.
        """
        groups: defaultdict[str, list[float]] = defaultdict(list)
        for example, metric in zip(examples, metrics.tolist(), strict=True):
            for kind, name in (("question", example.question_type), ("answer", example.answer_type)):
                if name:  # arrow tables have no types
                    groups[f"{kind}/{name}"].append(metric)
        by_group = {name: float(np.mean(values)) for name, values in sorted(groups.items())}
        ceiling = float(np.mean([self.ceiling(example) for example in examples]))
        blank = float(sum(not any(example.answers) for example in examples))
        return {**super().summary(examples, losses, metrics), "ceiling": ceiling, "blank": blank, **by_group}

    def ceiling(self, example: VQAExample) -> float:
        """Return the accuracy of the best answer in the vocabulary, 0..1."""
        known = set(map(normalize_answer, example.answers)) & self._index.keys()
        return max((vqa_accuracy(answer, example.answers) for answer in known), default=0.0)

    def covers_labels(self, examples: Sequence[VQAExample]) -> bool:
        """Return True if at least half of the examples have an answer in the vocabulary."""
        known = sum(any(normalize_answer(answer) in self._index for answer in e.answers) for e in examples)
        return 2 * known >= len(examples)
