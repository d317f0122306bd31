"""The recorded runs of the reference, and how to repeat them with our models."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from das_gym.models.base import State
from das_gym.models.checkpoints import LoadedCheckpoint, load_checkpoint
from das_gym.models.meter.model import METER
from das_gym.models.vilt.model import ViLT

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

    def head(self, name: str, features: Tensor) -> Tensor:
        parts = {key: tensor.to(self.dtype) for key, tensor in loaded(self.name).heads[name].items()}
        if "weight" in parts:
            return F.linear(features, parts["weight"], parts["bias"])
        hidden = F.linear(features, parts["0.weight"], parts["0.bias"])
        hidden = F.gelu(F.layer_norm(hidden, hidden.shape[-1:], parts["1.weight"], parts["1.bias"]))
        return F.linear(hidden, parts["3.weight"], parts["3.bias"])

    @torch.no_grad()
    def features(self, image: Tensor, input_ids: Tensor, attention_mask: Tensor, image_type: int = 1) -> Tensor:
        """(masks, batch, feature_size)."""
        types = torch.full((len(image),), image_type)
        batch = {"image": image, "input_ids": input_ids, "attention_mask": attention_mask, "image_types": types}
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

    def check_vqa(self) -> None:
        features = self.features(self.given("image"), self.given("text_ids"), self.given("text_masks"))
        logits = self.head("vqa_classifier", features)
        targets = self.given("vqa_targets").expand_as(logits)
        loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(-1).mean(-1)
        for actual, key in ((features, "cls_feats"), (logits, "logits"), (loss, "loss")):
            self.check(actual, f"vqa/{key}")

    def check_nlvr2(self) -> None:
        text = self.given("text_ids"), self.given("text_masks")
        first, second = (self.features(self.given(f"image_{i}"), *text, image_type=i + 1) for i in (0, 1))
        logits = self.head("nlvr2_classifier", torch.cat((first, second), dim=-1))
        loss = torch.stack([F.cross_entropy(row, self.given("answers")) for row in logits])
        for actual, key in ((first, "cls_feats_1"), (second, "cls_feats_2"), (logits, "logits"), (loss, "loss")):
            self.check(actual, f"nlvr2/{key}")

    def check_retrieval(self) -> None:
        def texts(name: str) -> Tensor:  # (batch, 1 + false, tokens), the true text first
            return torch.cat((self.given(f"text_{name}")[:, None], self.given(f"false_text_{name}").transpose(0, 1)), dim=1)

        ids, masks = texts("ids"), texts("masks")
        images = self.given("image").repeat_interleave(ids.shape[1], dim=0)
        features = self.features(images, ids.flatten(0, 1), masks.flatten(0, 1))
        scores = self.head("rank_output", features)[..., 0].unflatten(1, ids.shape[:2])
        loss = torch.stack([F.cross_entropy(row, torch.zeros(len(row), dtype=torch.long)) for row in scores])
        for actual, key in ((features, "cls_feats"), (scores, "score"), (loss, "loss")):
            self.check(actual, f"irtr/{key}")

    def check_matching(self) -> None:
        labels = self.given("itm_labels")
        images = torch.where(labels[:, None, None, None] == 1, self.given("image"), self.given("false_image_0"))
        features = self.features(images, self.given("text_ids"), self.given("text_masks"))
        logits = self.head("itm_score", features)
        loss = torch.stack([F.cross_entropy(row, labels) for row in logits])
        for actual, key in ((features, "cls_feats"), (logits, "logits"), (loss, "loss")):
            self.check(actual, f"itm/{key}")


def vqa_gradients(name: str, mask: list[int]) -> tuple[METER | ViLT, dict[str, Tensor]]:
    """A frozen model after the VQA loss's backward pass under a mask, and the gradients of the head by name."""
    vlp, case = fresh(name), Recorded(name, torch.float32)
    vlp.freeze()
    head = {key: t.clone().requires_grad_() for key, t in loaded(name).heads["vqa_classifier"].items()}
    features = vlp(case.batch(), [i in mask for i in range(12)])
    hidden = F.linear(features, head["0.weight"], head["0.bias"])
    hidden = F.gelu(F.layer_norm(hidden, hidden.shape[-1:], head["1.weight"], head["1.bias"]))
    logits = F.linear(hidden, head["3.weight"], head["3.bias"])
    loss = F.binary_cross_entropy_with_logits(logits, case.given("vqa_targets"), reduction="sum") / len(logits)
    loss.backward()
    return vlp, {f"vqa_classifier.{key}": t.grad for key, t in head.items() if t.grad is not None}


def trainable(name: str, task: str) -> set[str]:
    """Names of the reference's parameters that train in a task."""
    rows = (line.split("\t") for line in (GOLDEN / f"trainable_{name}.txt").read_text().splitlines() if line[0] != "#")
    return {row[1] for row in rows if row[0] == task and row[3] == "requires_grad=True"}
