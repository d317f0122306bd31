"""MACs and parameters of METER-base on VQA, and what DAS saves: the table of the paper."""

from __future__ import annotations

import numpy as np

from das_gym.models.encoding import meta_batch
from das_gym.models.macs import without_content
from das_gym.models.meter.model import METER
from das_gym.models.meter.network import METERConfig
from das_gym.models.sizes import check_sizes
from das_gym.problem.costs import count_costs
from das_gym.tasks.classification import build_classifier

NUM_ANSWERS = 3129
"""Outputs of the VQA head."""


def paper_table(image_size: int = 384, text_tokens: int = 40, counting: str = "runs") -> list[dict[str, float | str]]:
    """Return the paper's table: METER-base without adapters, with them, and DAS with four layers skipped.

    Args:
        image_size: Side of the image, pixels.
        text_tokens: Length of the text.
        counting: `runs`, or `paper`, see `das_gym.problem.costs`.

    Returns:
        `what`, `macs`, `change` (MACs, against no adapters), `percent` (the same), and the parameters of the
        adapters that run, without (`adapters`) and with (`adapters_and_norms`) their LayerNorms.
    """
    config = METERConfig(image_size=image_size)
    check_sizes(config, {})
    layers, width = config.fusion_layers, config.hidden_size
    with without_content():
        vlp, head = METER(config), build_classifier(2 * width, NUM_ANSWERS, 2 * width)
    costs = count_costs(vlp, meta_batch(text_tokens, (3, image_size, image_size)), head, counting=counting)
    rows: list[dict[str, float | str]] = [
        {"what": "no adapters", "macs": costs.macs_full, "change": 0, "percent": 0.0, "adapters": 0, "adapters_and_norms": 0}
    ]
    for text, image in ((0, 0), (4, 0), (3, 1), (2, 2), (1, 3), (0, 4)):
        mask = np.array([i < text for i in range(layers)] + [i < image for i in range(layers)])
        with_norms = int(np.where(mask, costs.skip_parameters, costs.parallel_parameters).sum())
        norms = int(np.where(mask, 1, 3).sum()) * 2 * width
        macs = costs.macs(mask)
        rows.append(
            {
                "what": f"DAS, {text} text + {image} image" if text + image else "adapters, no skipping",
                "macs": macs,
                "change": macs - costs.macs_full,
                "percent": -100 * costs.macs_saved(mask),
                "adapters": with_norms - norms,
                "adapters_and_norms": with_norms,
            }
        )
    return rows
