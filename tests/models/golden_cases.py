"""The recorded runs of the reference, and how to repeat them with our models."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from das_gym.models.base import State
from das_gym.models.checkpoints import LoadedCheckpoint, load_checkpoint
from das_gym.models.meter.model import METER
from das_gym.models.vilt.model import ViLT
from das_gym.tasks.base import Task
from das_gym.tasks.nlvr2 import NLVR2Task
from das_gym.tasks.retrieval import RetrievalTask
from das_gym.tasks.vqa.task import VQATask

GOLDEN = Path(__file__).parents[1] / "golden"
HEADS = {"meter": {"num_heads": 4, "text_heads": 4}, "vilt": {"num_heads": 4}}
DTYPES = (torch.float32, torch.float64)


@cache
def tensors(name: str) -> dict[str, Tensor]:
    with safe_open(GOLDEN / f"{name}_golden.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@cache
def metadata(name: str) -> dict:
    with safe_open(GOLDEN / f"{name}_golden.safetensors", "pt") as file:
        return json.loads(file.metadata()["meta"])


@cache
def loaded(name: str, dtype: torch.dtype = torch.float32) -> LoadedCheckpoint:
    """The tiny model; do not change it."""
    found = load_checkpoint(GOLDEN / f"{name}_tiny.ckpt", **HEADS[name])
    found.vlp.to(dtype)
    return found


def fresh(name: str) -> METER | ViLT:
    return copy.deepcopy(loaded(name).vlp)


def run_full(vlp: METER | ViLT, state: State, mask: list[bool]) -> list[State]:
    """The state before stage 0 and after every stage, all tokens as queries in the last one too."""
    states = [state]
    for stage in vlp.stages:
        hidden = dict(states[-1].hidden)
        for index in stage:
            hidden[vlp.layers[index].stream] = vlp.run_layer(index, states[-1], mask[index])
        states.append(states[-1].with_hidden(hidden))
    return states


@dataclass(frozen=True)
class Recorded:
    """One model's recorded runs in one precision; `part` is "" or "pad/"."""

    name: str
    dtype: torch.dtype
    part: str = ""

    @property
    def vlp(self) -> METER | ViLT:
        return loaded(self.name, self.dtype).vlp

    def given(self, key: str) -> Tensor:
        tensor = tensors(self.name)[f"{self.part}in/{key}"]
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def batch(self) -> dict[str, Tensor]:
        """The texts with their images."""
        names = {"image": "image", "input_ids": "text_ids", "attention_mask": "text_masks"}
        return {ours: self.given(theirs) for ours, theirs in names.items()}

    def expected(self, key: str) -> Tensor:
        return tensors(self.name)[f"{self.part}{'f64/' if self.dtype == torch.float64 else ''}{key}"]

    @property
    def masks(self) -> list[list[bool]]:
        return tensors(self.name)[f"{self.part}skip_masks"].bool().tolist()

    def head(self, name: str, build: Callable[..., nn.Module]) -> nn.Module:
        """A task's head with the recorded weights."""
        parts = loaded(self.name).heads[name]
        head = build(self.vlp.feature_size, len(parts["0.bias"]) if "0.bias" in parts else None)
        head.load_state_dict({key if key[0].isdigit() else f"0.{key}": tensor for key, tensor in parts.items()})
        return head.to(self.dtype)

    @torch.no_grad()
    def features(self, image: Tensor, input_ids: Tensor, attention_mask: Tensor, image_types: Tensor) -> Tensor:
        """(masks, batch, feature_size)."""
        batch = {"image": image, "input_ids": input_ids, "attention_mask": attention_mask, "image_types": image_types}
        encoded = self.vlp.encode(batch)
        rows = []
        for mask in self.masks:
            state = self.vlp.embed(encoded)
            for stage in range(len(self.vlp.stages)):
                state = self.vlp.advance(state, stage, mask)
            rows.append(self.vlp.pool(state))
        return torch.stack(rows)

    def check(self, actual: Tensor, key: str) -> None:
        tolerance = {"atol": 1e-5, "rtol": 1e-5} if self.dtype == torch.float32 else {"atol": 1e-10, "rtol": 0}
        torch.testing.assert_close(actual, self.expected(key), **tolerance)

    @torch.no_grad()
    def check_task(self, task: Task, features: Tensor, head: nn.Module, targets: dict[str, Tensor], keys: str) -> None:
        """Compare logits and losses of a task with those that are recorded as `keys`, such as `vqa/logits vqa/loss`."""
        logits = torch.stack([head(task.group_features(row)) for row in features])
        losses = torch.stack([task.losses(row, targets).mean() for row in logits])
        for actual, key in zip((logits, losses), keys.split(), strict=True):
            self.check(actual, key)

    def check_vqa(self) -> None:
        image = self.given("image")
        features = self.features(image, self.given("text_ids"), self.given("text_masks"), torch.ones(len(image)).long())
        self.check(features, "vqa/cls_feats")
        targets = self.given("vqa_targets")
        task = VQATask(None, tuple(map(str, range(targets.shape[1]))))
        head = self.head("vqa_classifier", task.build_head)
        self.check_task(task, features, head, {"scores": targets}, "vqa/logits vqa/loss")

    def check_nlvr2(self) -> None:
        images = torch.stack([self.given("image_0"), self.given("image_1")], dim=1).flatten(0, 1)  # example by example
        ids, masks = (self.given(f"text_{part}").repeat_interleave(2, dim=0) for part in ("ids", "masks"))
        features = self.features(images, ids, masks, torch.tensor([1, 2]).repeat(len(images) // 2))
        for number in (1, 2):
            self.check(features[:, number - 1 :: 2], f"nlvr2/cls_feats_{number}")
        task = NLVR2Task(None)
        head = self.head("nlvr2_classifier", task.build_head)
        self.check_task(task, features, head, {"label": self.given("answers")}, "nlvr2/logits nlvr2/loss")

    def check_retrieval(self) -> None:
        def texts(name: str) -> Tensor:  # the true text first
            given = self.given(f"text_{name}")[:, None], self.given(f"false_text_{name}").transpose(0, 1)
            return torch.cat(given, dim=1).flatten(0, 1)

        class FewTexts(RetrievalTask):  # the reference was recorded with 3 false texts
            passes = 1 + len(self.given("false_text_ids"))

        images = self.given("image").repeat_interleave(FewTexts.passes, dim=0)
        features = self.features(images, texts("ids"), texts("masks"), torch.ones(len(images)).long())
        self.check(features, "irtr/cls_feats")
        targets = {"true": torch.zeros(len(self.given("image")), dtype=torch.long)}
        task = FewTexts(None)
        head = self.head("rank_output", task.build_head)
        self.check_task(task, features, head, targets, "irtr/score irtr/loss")

    def check_matching(self) -> None:
        labels = self.given("itm_labels")
        images = torch.where(labels[:, None, None, None] == 1, self.given("image"), self.given("false_image_0"))
        texts = self.given("text_ids"), self.given("text_masks")
        features = self.features(images, *texts, torch.ones(len(images)).long())
        weights = {key: tensor.to(self.dtype) for key, tensor in loaded(self.name).heads["itm_score"].items()}
        logits = F.linear(features, weights["weight"], weights["bias"])
        loss = torch.stack([F.cross_entropy(row, labels) for row in logits])
        for actual, key in ((features, "cls_feats"), (logits, "logits"), (loss, "loss")):
            self.check(actual, f"itm/{key}")


def vqa_gradients(name: str, mask: list[int]) -> tuple[METER | ViLT, dict[str, Tensor]]:
    """A frozen model after the VQA loss's backward pass under a mask, and the gradients of the head by name."""
    vlp, case = fresh(name), Recorded(name, torch.float32)
    vlp.freeze()
    targets = case.given("vqa_targets")
    task = VQATask(None, tuple(map(str, range(targets.shape[1]))))
    head = case.head("vqa_classifier", task.build_head)
    task.losses(head(vlp(case.batch(), [i in mask for i in range(12)])), {"scores": targets}).mean().backward()
    return vlp, {f"vqa_classifier.{key}": p.grad for key, p in head.named_parameters() if p.grad is not None}


def trainable(name: str, task: str) -> set[str]:
    """Names of the reference's parameters that train in a task."""
    rows = (line.split("\t") for line in (GOLDEN / f"trainable_{name}.txt").read_text().splitlines() if line[0] != "#")
    return {row[1] for row in rows if row[0] == task and row[3] == "requires_grad=True"}
