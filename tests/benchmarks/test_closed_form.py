import copy

import numpy as np

from benchmarks.closed_form import fit_maps, put_maps
from das_gym.problem.loading import AdaptedModel
from das_gym.problem.problem import problem_from_model


def test_fitted_maps_come_closer_to_the_layers_than_leaving_them_out(small_problem):
    backbone = copy.deepcopy(small_problem.backbone)
    model = AdaptedModel(backbone, small_problem.head, small_problem.task)
    maps = fit_maps(model, small_problem.splits.train[:16])
    masks = np.eye(len(maps), dtype=bool)
    errors = []
    for given in (maps, None):
        put_maps(backbone.vlp, given)
        evaluator = problem_from_model(model, small_problem.splits, backbone.origin.config).evaluator
        examples = small_problem.splits.reward[:8]
        full = evaluator.losses(~masks[:1] & masks[:1], examples)
        errors.append(np.abs(evaluator.losses(masks, examples) - full).mean())
    assert errors[0] < errors[1] / 2
