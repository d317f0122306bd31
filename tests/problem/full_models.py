"""Models of any size without content, and what they cost."""

from __future__ import annotations

from functools import cache

from das_gym.models.encoding import meta_batch
from das_gym.models.macs import without_content
from das_gym.models.meter.model import METER
from das_gym.models.meter.network import METERConfig
from das_gym.models.vilt.model import ViLT
from das_gym.models.vilt.network import ViLTConfig
from das_gym.problem.costs import Costs, count_costs
from das_gym.tasks.classification import build_classifier


def on_meta(config: METERConfig | ViLTConfig) -> METER | ViLT:
    with without_content():
        return (METER if isinstance(config, METERConfig) else ViLT)(config).eval()


def full_costs(
    config: METERConfig | ViLTConfig, text: int = 40, answers: int | None = None, counting: str = "paper"
) -> Costs:
    """Costs of a model of that size, with its VQA head where `answers` is given; counted once."""
    return _whole(config, text, answers, counting)


@cache
def _whole(config: METERConfig | ViLTConfig, text: int, answers: int | None, counting: str) -> Costs:
    vlp = on_meta(config)
    with without_content():
        head = None if answers is None else build_classifier(vlp.feature_size, answers, vlp.head_size or vlp.feature_size)
    return count_costs(vlp, meta_batch(text, (3, config.image_size, config.image_size)), head, counting=counting)
