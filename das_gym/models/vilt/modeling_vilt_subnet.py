"""ViLT without the blocks that its task does not need, as a model of transformers.

An exported folder carries this file and the files that it imports:

    from transformers import AutoModel, AutoProcessor

    model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(FOLDER, trust_remote_code=True)
    batch = processor(images, ["what is left of the cube?"], padding=True, truncation=True, return_tensors="pt")
    logits = model(**batch).logits

Source: ViLT (arXiv 2102.03334) under DAS (arXiv 2309.01479).
"""

import torch
from torch import Tensor

from das_gym.models.adapters import skip_adapter
from das_gym.models.subnet import Subnet, SubnetConfig
from das_gym.models.vilt.network import ViLTBlock, ViLTConfig, ViLTNetwork


class ViltSubnetConfig(SubnetConfig):
    """Configuration of `ViltSubnet`; its `sizes` are fields of `ViLTConfig`."""

    model_type = "vilt_subnet"


class ViltSubnet(ViLTNetwork, Subnet):
    """ViLT without the skipped blocks, and the head of its task; see `Subnet.forward`."""

    config_class = ViltSubnetConfig

    def __init__(self, config: ViltSubnetConfig) -> None:
        super().__init__(config)
        sizes = ViLTConfig(**(config.sizes or {}))
        self.build_network(sizes, lambda index: self.make_slot(index, ViLTBlock, skip_adapter, sizes))
        self.build_head(sizes.hidden_size)
        self.post_init()  # type: ignore[operator]

    def read_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return (batch, tokens, hidden_size) of texts; see `ViLTNetwork.embed_text`."""
        return self.embed_text(input_ids)

    def fuse(self, text: Tensor, attend: Tensor, pixels: Tensor, pixel_mask: Tensor | None, image_type: int) -> Tensor:
        """Return (batch, hidden_size) features of embedded texts with one image each."""
        image, seen = self.embed_image(pixels, pixel_mask)
        x = self.join_streams(text, image, image_type)
        attend = torch.cat((attend, seen), dim=1)[:, None, None]
        for index, slot in enumerate(self.blocks):
            x = self.run_slot(slot, index == len(self.blocks) - 1, x, attend)
        return self.pool_joint(x)
