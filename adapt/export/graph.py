"""A subnet as an ONNX file, for any batch and text length, and the examples on which exported forms are compared."""

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from das_gym.data.images import NoiseImage
from das_gym.models.inputs import Pair
from das_gym.problem.loading import AdaptedModel

FILE = "model.onnx"
OPSET = 20

MOST_IN_ONE_FILE = 1_500_000_000
"""Bytes of weights above which they are stored in a separate file, since a graph's file is limited to 2 GiB."""

TOLERANCE = 1e-4
"""Largest allowed difference of a logit."""

WORDS = ("one", "what is this", "the picture shows all that is said here", "red")


class SubnetGraph(nn.Module):
    """A subnet and its head with the inputs of transformers' models."""

    def __init__(self, subnet: AdaptedModel, num_images: int) -> None:
        super().__init__()
        self.vlp = subnet.backbone.vlp
        self.num_images = num_images
        parts = subnet.head if isinstance(subnet.head, nn.Sequential) else [subnet.head]
        self.head = nn.Sequential(*(part for part in parts if not isinstance(part, nn.Flatten)))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> Tensor:
        """Return (batch, num_labels) logits."""
        count = self.num_images
        types = dict[str, Tensor]()
        if count > 1:
            input_ids, attention_mask = (t.repeat_interleave(count, dim=0) for t in (input_ids, attention_mask))
            numbers = torch.arange(1, 1 + count, device=pixel_values.device)
            types = {"image_types": numbers.expand(pixel_values.shape[0], -1).flatten()}
            pixel_values = pixel_values.flatten(0, 1)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "image": pixel_values, **types}
        return self.head(self.vlp(batch).unflatten(0, (-1, count)).flatten(1))


def write_onnx(subnet: AdaptedModel, num_images: int, path: Path) -> float:
    """Write the graph, and return the largest difference of a logit in other batches; ValueError above `TOLERANCE`."""
    import onnxruntime

    names = ("input_ids", "attention_mask", "pixel_values")
    processor = subnet.task.processor
    traced = probe_batch(subnet, num_images, rows=2)
    batch = transformers_batch(traced, num_images)
    size = torch.export.Dim("batch")
    tokens = torch.export.Dim("tokens", max=processor.max_text_length)
    image: dict[int, Any] = {0: size}
    if traced["image"].shape[-1] != traced["image"].shape[-2]:  # images keep their shapes
        sides = (torch.export.Dim("rows"), torch.export.Dim("columns"))
        image |= {batch["pixel_values"].ndim - 2 + i: processor.patch_size * side for i, side in enumerate(sides)}
    shapes = ({0: size, 1: tokens}, {0: size, 1: tokens}, image)
    given = tuple(batch[name] for name in names)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
        program: Any = torch.onnx.export(
            SubnetGraph(subnet, num_images).eval(),
            given,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=names,
            output_names=["logits"],
            opset_version=OPSET,
        )
        weights = sum(p.numel() * p.element_size() for p in subnet.backbone.vlp.parameters())
        program.save(path, external_data=weights > MOST_IN_ONE_FILE)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    differences = []
    # Other batches, text lengths and image shapes than the one that was traced.
    for rows, square in ((1, True), (6, False)):
        batch = probe_batch(subnet, num_images, rows, square)
        named = transformers_batch(batch, num_images)
        named |= {name: named[name][:, : int(named["attention_mask"].sum(1).max())] for name in names[:2]}
        found = torch.from_numpy(session.run(["logits"], {name: named[name].cpu().numpy() for name in names})[0])
        differences.append(float((found.reshape(-1) - subnet_logits(subnet, batch).cpu()).abs().max()))
    if not max(differences) <= TOLERANCE:
        raise ValueError(
            f"onnxruntime's logits differ from the subnet's by {max(differences):.1e}, more than {TOLERANCE:g}. Leave "
            "`onnx` out, and report this with the versions of torch, onnxscript and onnxruntime."
        )
    return max(differences)


def probe_batch(subnet: AdaptedModel, num_images: int, rows: int = 3, square: bool = False) -> dict[str, Tensor]:
    """Return a batch of das_gym on the subnet's device. Every second image is wider than high, unless they are `square`."""
    side = subnet.task.processor.image_size
    pairs = []
    for row in range(rows):
        width = side if square or row % 2 else 3 * side // 2
        for number in range(subnet.task.passes):
            word = WORDS[(row if num_images > 1 else row + number) % len(WORDS)]
            image = NoiseImage(subnet.task.passes * row + number, width, side)
            pairs.append(Pair(f"{word} {row}", image, 1 + number % num_images))
    dtype = next(subnet.backbone.vlp.parameters()).dtype
    batch = {name: tensor.to(subnet.backbone.vlp.device) for name, tensor in subnet.task.processor(pairs).items()}
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in batch.items()}


def transformers_batch(batch: Mapping[str, Tensor], num_images: int) -> dict[str, Tensor]:
    """Return the batch as transformers' models take it, with several images of an example in one row."""
    image = batch["image"]
    if num_images > 1:
        image = image.unflatten(0, (-1, num_images))
    texts = {name: batch[name][::num_images] for name in ("input_ids", "attention_mask")}
    return {**texts, "pixel_values": image, "pixel_mask": (image.sum(-3) != 0).long()}


@torch.no_grad()
def subnet_logits(subnet: AdaptedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the subnet's (batch * num_labels,) logits of a batch of `probe_batch`."""
    subnet.head.eval()
    return subnet.head(subnet.task.group_features(subnet.backbone.vlp(batch))).reshape(-1)
