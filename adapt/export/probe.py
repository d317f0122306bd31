"""A few made-up examples on which a subnet and its exported form are compared."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from das_gym.data.images import NoiseImage
from das_gym.models.inputs import Pair
from das_gym.problem.loading import AdaptedModel

WORDS = ("one", "what is this", "the picture shows all that is said here", "red")


def probe(subnet: AdaptedModel, num_images: int, rows: int = 3, square: bool = False) -> dict[str, Tensor]:
    """Return a batch of das_gym on the subnet's device. Every second image is wider than high, unless they are `square`."""
    task, side = subnet.task, subnet.task.processor.image_size
    pairs = []
    for row in range(rows):
        width = side if square or row % 2 else 3 * side // 2
        for number in range(task.passes):
            word = WORDS[(row if num_images > 1 else row + number) % len(WORDS)]
            image = NoiseImage(task.passes * row + number, width, side)
            pairs.append(Pair(f"{word} {row}", image, 1 + number % num_images))
    dtype = next(subnet.backbone.vlp.parameters()).dtype
    batch = {name: tensor.to(subnet.backbone.vlp.device) for name, tensor in task.processor(pairs).items()}
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in batch.items()}


def as_transformers(batch: Mapping[str, Tensor], num_images: int) -> dict[str, Tensor]:
    """Return the batch as transformers' models take it, with several images of an example in one row."""
    image = batch["image"]
    if num_images > 1:
        image = image.unflatten(0, (-1, num_images))
    texts = {name: batch[name][::num_images] for name in ("input_ids", "attention_mask")}
    return {**texts, "pixel_values": image, "pixel_mask": (image.sum(-3) != 0).long()}


@torch.no_grad()
def subnet_logits(subnet: AdaptedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the subnet's logits of a batch of `probe`, flat."""
    subnet.head.eval()
    return subnet.head(subnet.task.group_features(subnet.backbone.vlp(batch))).reshape(-1)
