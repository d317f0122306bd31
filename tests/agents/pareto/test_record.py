"""The points of a front."""

from __future__ import annotations

import numpy as np
from das_gym.agents.pareto.record import FrontResult, ScoredMasks


def test_front_keeps_a_layer_where_skipped_layers_are_removed():
    masks = np.array([[0, 0], [1, 0], [1, 1]], dtype=bool)
    searched = ScoredMasks(masks, np.array([0.0, 0.4, 0.8]), np.array([0.1, 0.2, 0.9]), np.ones(3))
    parts = {"settings": {}, "env_id": "e", "env_kwargs": {}, "cost": "MACs", "layer_names": ("a", "b")}
    parts["searched"] = searched
    assert len(FrontResult(**parts).record()["points"]) == 3
    points = FrontResult(**parts, keeps_a_layer=True).record()["points"]
    assert [point["mask"] for point in points] == [[0, 0], [1, 0]]
