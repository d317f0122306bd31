"""Vision-language pre-trained models: what can be skipped, and how."""

from das_gym.vlp.base import VLP, Layer, State
from das_gym.vlp.checkpoints import Loaded, LoadReport, load_checkpoint, load_vlp, save_checkpoint
from das_gym.vlp.meter import METER, METERConfig
from das_gym.vlp.vilt import ViLT, ViLTConfig

__all__ = [
    "METER",
    "VLP",
    "Layer",
    "LoadReport",
    "Loaded",
    "METERConfig",
    "State",
    "ViLT",
    "ViLTConfig",
    "load_checkpoint",
    "load_vlp",
    "save_checkpoint",
]
