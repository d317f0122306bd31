from __future__ import annotations

import pytest
from das_gym.adapt.costs_table import main


@pytest.mark.slow
def test_the_table_is_printed(capsys):
    main(["with", "counting=paper"])
    printed = capsys.readouterr().out
    for figure in ("93.132", "94.770", "5.34", "5.39", "81.955", "-11.177", "-12.00", "90.574", "73.335", "11.97"):
        assert figure in printed
    main(["with", "text_tokens=50"])
    printed = capsys.readouterr().out
    assert "50 text tokens" in printed
    assert "-13.21" in printed  # as it runs: `test_what_runs_in_the_last_stage_is_the_pooled_token_alone`
    assert "-12.00" not in printed


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["with", "image_size=100"], "invalid `image_size`: got 100"),
        (["with", "answers=-1"], "answers=-1 is not allowed; use 1 or more"),
        (["with", "counting=papers"], "counting='papers' .str. is not allowed; give one of runs, paper"),
        (["with", "text_token=5"], "unknown setting 'text_token'; did you mean 'text_tokens'"),
        (["with", "answers"], r"'answers' is no setting; give name=value, as in `.* adapt costs with answers=\.\.\.`"),
        (["answers=3"], "did you mean `.* adapt costs with answers=3`"),
    ],
)
def test_wrong_words(words, text):
    with pytest.raises((ValueError, TypeError), match=text):
        main(words)
