"""METER without the layers that its task does not need, as a model of transformers.

An exported folder carries this file and the files that it imports:

    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
    image_processor = AutoImageProcessor.from_pretrained(FOLDER, trust_remote_code=True)
    texts = tokenizer(["what is left of the cube?"], padding=True, truncation=True, return_tensors="pt")
    logits = model(**texts, **image_processor(images, return_tensors="pt")).logits

Source: METER (arXiv 2111.02387) under DAS (arXiv 2309.01479).
"""

from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from das_gym.models.adapters import skip_adapter
from das_gym.models.meter.inputs import meter_transform
from das_gym.models.meter.network import FusionLayer, METERConfig, METERNetwork
from das_gym.models.subnet import Subnet, SubnetConfig


class MeterSubnetConfig(SubnetConfig):
    """Configuration of `MeterSubnet`; its `sizes` are fields of `METERConfig`."""

    model_type = "meter_subnet"


class MeterSubnet(METERNetwork, Subnet):
    """METER without the skipped layers, and the head of its task; see `Subnet.forward`."""

    config_class = MeterSubnetConfig

    def __init__(self, config: MeterSubnetConfig) -> None:
        super().__init__(config)
        sizes = METERConfig(**(config.sizes or {}))
        self.build_network(sizes, lambda index: self.make_slot(index, FusionLayer, skip_adapter, sizes))
        self.build_head(2 * sizes.hidden_size)
        self.post_init()  # type: ignore[operator]

    def read_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return (batch, tokens, hidden_size) of texts; see `METERNetwork.encode_text`."""
        return self.encode_text(input_ids, attention_mask)

    def fuse(self, text: Tensor, attend: Tensor, pixels: Tensor, pixel_mask: Tensor | None, image_type: int) -> Tensor:
        """Return (batch, 2 * hidden_size) features of encoded texts with one image each."""
        del pixel_mask  # METER's images have no padding
        text, image = self.embed_streams(text, self.encode_image(pixels), image_type)
        last = len(self.text_layers) - 1
        attend = attend[:, None, None]
        for stage, (text_slot, image_slot) in enumerate(zip(self.text_layers, self.image_layers, strict=True)):
            text, image = (  # both layers of a stage read the state before it
                self.run_slot(text_slot, stage == last, text, image, attend, None),
                self.run_slot(image_slot, stage == last, image, text, None, attend),
            )
        return self.pool_streams(text, image)


class MeterSubnetImageProcessor(BaseImageProcessor):
    """Images to pixels of a square with sides of `size`, see `meter_transform`."""

    model_input_names = ["pixel_values"]  # noqa: RUF012

    def __init__(self, size: int = 384, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = size

    def __call__(self, images: Any, return_tensors: str | None = "pt", **kwargs: Any) -> BatchFeature:
        """Return `pixel_values` (batch, 3, size, size) float32 of one image of Pillow, or of several."""
        images = images if isinstance(images, list | tuple) else [images]
        pixels = torch.stack([meter_transform(image, self.size) for image in images])
        return BatchFeature({"pixel_values": pixels.numpy()}, return_tensors)
