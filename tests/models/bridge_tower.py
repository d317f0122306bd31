"""A small checkpoint of a model that das_gym does not know."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch


def save_bridge_tower(folder: Path, tokenizer: Path) -> Path:
    """A tiny random BridgeTower, 6 + 6 cross-modal layers, as `save_pretrained` writes it."""
    from transformers import BridgeTowerConfig, BridgeTowerModel

    torch.manual_seed(0)
    text = {
        "vocab_size": 512,
        "hidden_size": 64,
        "num_hidden_layers": 7,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "max_position_embeddings": 66,
    }
    vision = {"hidden_size": 64, "num_hidden_layers": 7, "patch_size": 16, "image_size": 32}
    config = BridgeTowerConfig(
        hidden_size=64,
        num_attention_heads=4,
        num_hidden_layers=6,
        text_config=text,
        vision_config=vision,
        initializer_factor=8,
    )
    BridgeTowerModel(config).save_pretrained(folder)
    for path in tokenizer.glob("token*.json"):
        shutil.copy(path, folder / path.name)
    return folder
