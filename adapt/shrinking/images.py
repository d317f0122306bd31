"""Images of a recovery: the frozen vision tower runs once for each, and the projector, which trains, at every step."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from das_gym.models.base import tensor_bytes
from das_gym.models.inputs import Prompt
from das_gym.models.transformers.inputs import PromptProcessor
from das_gym.models.transformers.model import VLM
from das_gym.models.transformers.probing import find_tower_reads
from das_gym.models.transformers.tower import TowerCapabilities, VisionTower, find_projectors


def find_frozen_tower(vlm: VLM, processor: PromptProcessor) -> VisionTower | None:
    """Return a model's vision tower; None where there is none, it trains, or its outputs cannot be given to the model."""
    if not (processor.takes_images and vlm.capabilities.caches_images and vlm.tower is None):
        return None
    projectors = {id(p) for part in find_projectors(vlm.model).values() for p in part.parameters()}  # inside some towers
    own = vlm.model.get_encoder(modality="image").parameters()
    if any(p.requires_grad and id(p) not in projectors for p in own):
        return None
    try:
        reads = find_tower_reads(vlm.capabilities, vlm.model, processor)
    except ValueError:  # a type whose vision layers cannot be watched
        return None
    return VisionTower(vlm.model, TowerCapabilities(reads))


class TowerOutputs:
    """Outputs of the frozen vision tower by `Prompt.image_key`, of the first images that take `max_bytes` together.

    Others are computed at every step: to replace some would not help, since each epoch reads all images in a new order.
    """

    def __init__(self, vlm: VLM, tower: VisionTower, processor: PromptProcessor, max_bytes: int) -> None:
        self.vlm = vlm
        self.tower = tower
        self.processor = processor
        self.max_bytes = max_bytes
        self._bytes = 0
        self._kept: dict[Any, dict[str, Any]] = {}

    def has(self, key: Any) -> bool:
        """Return True if the outputs of a prompt's images are kept."""
        return key in self._kept

    def expected_bytes(self, examples: int) -> int:
        """Return the estimated bytes of the tower's outputs for a number of examples, from those that are kept so far."""
        return min(self.max_bytes, self._bytes // max(1, len(self._kept)) * examples)

    def features(self, prompts: Sequence[Prompt]) -> Mapping[Any, dict[str, Any]]:
        """Return the image features that the decoder reads, by key; gradients reach the projector."""
        wanted = {prompt.image_key: prompt for prompt in prompts if prompt.images}
        return {key: self.tower.finish_features(self._outputs(key, prompt)) for key, prompt in wanted.items()}

    def _outputs(self, key: Any, prompt: Prompt) -> dict[str, Any]:
        if key in self._kept:
            return self._kept[key]
        encoding = self.processor.encode(prompt, pixels=True)
        with torch.no_grad():
            outputs = self.tower.read_outputs(self.vlm.to_device(encoding.pixels | encoding.sizes))
        if self._bytes + tensor_bytes(outputs) <= self.max_bytes:
            self._kept[key] = outputs
            self._bytes += tensor_bytes(outputs)
        return outputs
