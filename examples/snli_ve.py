"""SNLI-VE, as a task of one's own: DATA_ROOT holds snli_ve_{train,dev,test}.jsonl and Flickr30k's flickr30k_images."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import torch
from das_gym.adapt.supernet import SupernetConfig, train_supernet

from das_gym import Pair, ProblemConfig, Splits, Task, TaskEntry, register_task
from das_gym.data.images import ImageFile
from das_gym.tasks.vqa.task import build_vqa_head

LABELS = ("entailment", "neutral", "contradiction")


def read(root, split):
    for entry in map(json.loads, (root / f"snli_ve_{split}.jsonl").read_text(encoding="utf-8").splitlines()):
        if entry["gold_label"] in LABELS:  # "-" where people did not agree
            image, label = root / "flickr30k_images" / f"{entry['Flickr30K_ID']}.jpg", LABELS.index(entry["gold_label"])
            yield SimpleNamespace(key=entry["pairID"], text=entry["sentence2"], image=ImageFile(image), label=label)


class SNLIVETask(Task):
    name = "snli"

    @classmethod
    def load_splits(cls, data_root, on_bad_example="raise"):
        return Splits(*(tuple(read(Path(data_root), split)) for split in ("train", "dev", "test")))

    def pairs(self, examples):
        return [Pair(e.text, e.image) for e in examples]

    def targets(self, examples):
        return {"label": torch.tensor([e.label for e in examples])}

    def build_head(self, feature_size, head_size=None):
        return build_vqa_head(feature_size, len(LABELS), head_size)

    def losses(self, logits, targets):
        return torch.nn.functional.cross_entropy(logits, targets["label"], reduction="none")

    def metrics(self, logits, targets):
        return (logits.argmax(-1) == targets["label"]).float()


def main(data_root, supernet="snli_supernet.safetensors", **training) -> float:
    register_task(TaskEntry(SNLIVETask.name, "SNLI", SNLIVETask, "SNLI-VE's files"))
    train_supernet(SupernetConfig(**training), ProblemConfig(task="snli", data_root=str(data_root)), Path(supernet))
    env = gymnasium.make("DAS-METER-SNLI-v0", data_root=str(data_root), supernet=str(supernet), skip_num=4)
    rewards = []
    for number in range(20):
        env.reset(seed=None if number else 0)
        rewards.append(float(env.step(env.unwrapped.np_random.permutation([1] * 4 + [0] * 8))[1]))
    return max(rewards)


if __name__ == "__main__":
    print(f"the best reward of 20 masks: {main(sys.argv[1]):.4f}")
