"""ViLT without the blocks that its task does not need, as a model of transformers.

An exported folder carries this file and the files that it imports:

    from transformers import AutoModel, AutoProcessor

    model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True)
    batch = processor(images, ["what is left of the cube?"], padding=True, truncation=True, return_tensors="pt")
    logits = model(**batch).logits

Source: ViLT (arXiv 2102.03334) under DAS (arXiv 2309.01479).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from das_gym.models.adapters import skip_adapter
from das_gym.models.subnet import Subnet, SubnetConfig
from das_gym.models.vilt.network import ViLTBlock, ViLTConfig, ViLTNetwork


class ViltSubnetConfig(SubnetConfig):
    """Configuration of `ViltSubnet`; its `sizes` are fields of `ViLTConfig`."""

    model_type = "vilt_subnet"


class ViltSubnet(ViLTNetwork, Subnet):
    """The model and its head.

    Args:
        config: Sizes, mask and head.
    """

    config_class = ViltSubnetConfig

    def __init__(self, config: ViltSubnetConfig) -> None:
        super().__init__(config)
        sizes = ViLTConfig(**config.sizes)
        self.build_network(sizes, lambda index: self.make_slot(index, ViLTBlock, skip_adapter, sizes))
        self.build_head(sizes.hidden_size)
        self.post_init()  # type: ignore[operator]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Compute logits of pairs of a text and its image, or images.

        Args:
            input_ids: (batch, tokens) int64.
            attention_mask: As `input_ids`, 1 = a real token; None = all are.
            pixel_values: (batch, 3, height, width) float, in patches, smaller images padded at their right and bottom;
                (batch, num_images, 3, height, width) if an example has several.
            pixel_mask: As `pixel_values` without channels, 0 = padding; None = where all channels are 0.
            labels: (batch, num_labels) float for binary cross-entropy, (batch,) int64 for cross-entropy; None = no loss.
            return_dict: Whether to return a `SequenceClassifierOutput`, or a tuple.
            **kwargs: What else a tokenizer returns; ignored.
        """
        if pixel_values is None:
            raise ValueError("`pixel_values` is missing: each text needs its image. AutoProcessor makes them")
        attend = (torch.ones_like(input_ids) if attention_mask is None else attention_mask).bool()
        text = self.embed_text(input_ids)
        images = zip(self.split_images(pixel_values), self.split_images(pixel_mask), strict=True)
        features = [self.fuse(text, attend, *image, 1 + number) for number, image in enumerate(images)]
        return self.classify(features, labels, return_dict)

    def fuse(self, text: Tensor, attend: Tensor, pixels: Tensor, pixel_mask: Tensor | None, image_type: int) -> Tensor:
        """Return (batch, hidden_size) features of embedded texts with one image each."""
        image, seen = self.embed_image(pixels, pixel_mask)
        x, attend = self.join_streams(text, image, image_type), torch.cat((attend, seen), dim=1)[:, None, None]
        for index, slot in enumerate(self.blocks):
            x = self.run_slot(slot, index == len(self.blocks) - 1, x, attend)
        return self.pool_joint(x)
