"""A run that was stopped and resumed is the run that wasn't, bit by bit. ``make chaos`` tries every step."""

import pytest

from chaos.runs import SMALL, VARIATIONS, differences, run_of, stopped_and_resumed, train

STOPS = {
    "all callbacks": (4,),
    "validation in the middle of an epoch": (1, 2, 3),
    "max_steps": (7,),
    "accumulated gradients": (3,),
    "validation between accumulated gradients": (1,),
    "stochastic binarisation, KL warm-up, one-cycle": (5,),
}


@pytest.mark.parametrize("name", VARIATIONS)
def test_a_run_that_was_stopped_and_resumed_ends_the_same(name, tmp_path):
    arguments = [*SMALL, *VARIATIONS[name][0]]
    assert train(tmp_path / "whole", *arguments) == 0
    whole = run_of(tmp_path / "whole")
    assert differences(stopped_and_resumed(tmp_path / "stopped", arguments, *STOPS[name]), whole) == []
