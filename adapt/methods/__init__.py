"""Methods of training a pre-trained model with few parameters, or all: `base` has the interface."""

from typing import Any

METHODS: dict[str, Any] = {
    "full": "das_gym.adapt.methods.weights:Full",
    "head": "das_gym.adapt.methods.weights:Head",
    "bitfit": "das_gym.adapt.methods.weights:BitFit",
    "lora": "das_gym.adapt.methods.lora:LoRA",
    "adapter": "das_gym.adapt.methods.adapter:AdapterTuning",
    "parallel": "das_gym.adapt.methods.adapter:ScaledParallel",
    "das": "das_gym.adapt.methods.adapter:DAS",
}
"""Name to class, or to its `module:class`."""

MASKED = "das"
"""The method that takes a mask."""
