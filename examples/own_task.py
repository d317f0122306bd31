"""A custom task: does the image contain the named object? Its environment, and a search."""

import tempfile
from pathlib import Path

import gymnasium
import torch
from das_gym.adapt.settings import SupernetConfig
from das_gym.adapt.supernet import train_supernet

from das_gym import Pair, ProblemConfig, Splits, Task, TaskEntry, register_task
from das_gym.shapes import bundled_root
from das_gym.tasks.vqa.files import load_vqa


class YesNoTask(Task):
    name = "yes_no"

    @classmethod
    def load_splits(cls, data_root, on_bad_example="raise"):
        whole = load_vqa(data_root or bundled_root("vqa"), on_bad_example)
        kept = [[e for e in part if e.answer in ("yes", "no")] for part in (whole.train, whole.reward, whole.test)]
        return Splits(*kept, whole.left_out)

    def pairs(self, examples):
        return [Pair(e.question, e.image) for e in examples]

    def targets(self, examples):
        return {"label": torch.tensor([float(e.answer == "yes") for e in examples])}

    def build_head(self, feature_size, head_size=None):
        return torch.nn.Sequential(torch.nn.Linear(feature_size, 1), torch.nn.Flatten(0))

    def losses(self, logits, targets):
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets["label"].to(logits), reduction="none")

    def metrics(self, logits, targets):
        return ((logits > 0) == (targets["label"] > 0.5)).float()


def main(steps: int = 300, **settings) -> float:
    register_task(TaskEntry(YesNoTask.name, "YesNo", YesNoTask, "yes/no questions of data in VQAv2's format"))
    config = SupernetConfig(steps=steps)
    problem = ProblemConfig(task=YesNoTask.name, **settings)
    with tempfile.TemporaryDirectory() as folder:
        supernet = train_supernet(config, problem, Path(folder) / "supernet.safetensors")
        env = gymnasium.make("DAS-METER-YesNo-v0", skip_num=4, supernet=str(supernet), **settings)
    scored = []
    for number in range(20):
        info = env.reset(seed=None if number else 0)[1]
        scored.append(env.step(env.unwrapped.np_random.permutation([1] * 4 + [0] * 8)))
    best = max(scored, key=lambda step: step[1])
    print(f"nothing skipped: accuracy {info['metric']:.3f}; the best of 20 masks: {best[4]['metric']:.3f}")
    return float(best[1])


if __name__ == "__main__":
    main()
