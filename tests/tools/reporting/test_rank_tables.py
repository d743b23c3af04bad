"""Tables of supernet accuracy and test accuracy, by hand."""

import numpy as np

from model.spaces.paths import Architecture
from tools.reporting.rank_tables import (
    GENERATOR,
    RANDOM,
    Answer,
    Judged,
    print_agreement,
    print_standing,
)


def judged(target: float, supernet: float, *tests: float) -> Judged:
    answer = Answer(RANDOM, target, Architecture(((int(100 * supernet),),)), target, 0.1)
    return Judged(answer, supernet, -supernet, tests)


def test_the_name_of_an_architecture_is_that_of_its_folder():
    """It must not change: trainings that are finished are found by it."""
    architecture = Architecture(((3, None, 7), ("none", None, 5)))
    assert Answer(RANDOM, None, architecture, 1.0, 1.0).name == "865cc633"


def test_agreement_is_that_within_targets(capsys):
    """By hand: at both targets one training has the supernet's order, the other reverses it."""
    cheap = [judged(4, 1.0, 50.0, 53.0), judged(4, 3.0, 52.0, 50.0), judged(4, 2.0, 51.0, 52.0)]
    costly = [judged(8, 1.1, 70.0, 73.0), judged(8, 3.1, 72.0, 70.0), judged(8, 2.1, 71.0, 72.0)]
    print_agreement([*cheap, cheap[0], *costly])  # what several methods gave counts once
    assert capsys.readouterr().out.splitlines()[1:] == [
        # 51.5, 51, 51.5: -2 / sqrt(3 * 2), for the tie
        "  -0.816 of the supernet with the mean of all trainings",
        "  0.000 of the supernet with one training",
        "  -1.000 of one training with another",
    ]
    print_agreement([judged(4, 1.0, 50.0), judged(4, 2.0, 51.0)])
    assert "another" not in capsys.readouterr().out


def test_answers_stand_among_random_ones_of_equal_cost(capsys):
    found = Answer(GENERATOR, 4.0, Architecture(((3,),)), 4.0, 0.1)
    scores = np.array([50.0, 52.0, 54.0, 56.0])
    print_standing([Judged(found, 55.0, 1.0, (60.0,)), judged(4, 51.0, 50.0)], {4.0: scores})
    [line] = capsys.readouterr().out.splitlines()
    said = "by the supernet, 4 random ones of 4 have 53.00 +- 2.58 %; "
    assert line == f"{said}generator's answer is above 75% of them"
