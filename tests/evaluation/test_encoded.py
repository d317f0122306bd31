from __future__ import annotations

import torch

from das_gym.evaluation.encoded import EncoderCache
from das_gym.problem import Problem


def test_an_examples_bits_do_not_depend_on_its_company(tiny_problem: Problem):
    examples = tiny_problem.splits.reward[:30]
    together = EncoderCache(tiny_problem.vlp, tiny_problem.task)
    together(examples)
    for size in (1, 7, 11):
        apart = EncoderCache(tiny_problem.vlp, tiny_problem.task)
        for start in range(0, len(examples), size):
            apart(examples[::-1][start : start + size])
        for example in examples:
            for stream in ("text", "image"):
                assert torch.equal(apart._kept[example.key][stream], together._kept[example.key][stream])


def test_stacked_again_it_is_what_the_model_encodes(tiny_problem: Problem):
    examples = tiny_problem.splits.reward[:5]
    state = EncoderCache(tiny_problem.vlp, tiny_problem.task)(examples)
    with torch.no_grad():
        plain = tiny_problem.vlp.encode(tiny_problem.task.inputs(examples))
    torch.testing.assert_close(state.hidden["image"], plain.hidden["image"], atol=1e-5, rtol=1e-5)
    real = plain.attend["text"][:, 0, 0, : state.hidden["text"].shape[1]]
    torch.testing.assert_close(
        state.hidden["text"][real], plain.hidden["text"][:, : real.shape[1]][real], atol=1e-5, rtol=1e-5
    )
