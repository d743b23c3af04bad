"""Combined scores: sets of a known order, and calibrations that must find which signal counts."""

import numpy as np
import pytest
from scipy.stats import rankdata

from model.ranking.combined import (
    Calibration,
    FixedScale,
    calibrated,
    features,
    log_ranks,
    normal_scores,
    ranks,
    ridge,
    sum_of_log_ranks,
)
from utils.statistics import kendall_tau

RANDOM = np.random.default_rng(0)


def test_log_ranks_are_those_of_a_set_ranked_by_hand():
    """Four networks, the worst first; equal values share their mean rank."""
    found = log_ranks(np.array([[0.1, 7.0], [0.2, 7.0], [5.0, 9.0], [0.3, -1.0]]))
    expected = np.log(np.array([[1, 2.5], [2, 2.5], [4, 4], [3, 1]]) / 4)
    np.testing.assert_allclose(found, expected)


def test_ranks_are_those_of_scipy():
    values = RANDOM.integers(0, 5, size=(30, 4)).astype(float)
    np.testing.assert_array_equal(ranks(values), rankdata(values, axis=0))


def test_the_sum_of_log_ranks_is_0_for_a_network_that_is_best_by_all_signals():
    signals = {"expressivity": np.array([3.0, 1, 2]), "supernet_loss": np.array([0.1, 0.9, 0.5])}
    found = sum_of_log_ranks(signals)
    assert found[0] == 0
    assert found[1] == pytest.approx(2 * np.log(1 / 3)), "the greatest loss is the worst"
    assert found[2] == pytest.approx(2 * np.log(2 / 3))


def test_on_a_fixed_scale_the_median_costs_log_2_and_what_is_better_less():
    first = {"expressivity": np.arange(101.0), "supernet_loss": np.arange(101.0)}
    scale = FixedScale.of(first)
    found = scale.penalties(
        {"expressivity": np.array([50, 100, 50]), "supernet_loss": np.array([50, 0, 100])}
    )
    assert found[0] == pytest.approx(2 * np.log(2))
    assert found[1] < found[0] < found[2], "a great loss is bad"


def test_a_fixed_scale_ranks_its_first_set_much_as_log_ranks_do():
    signals = {name: RANDOM.normal(size=200) for name in "abc"}
    found = -FixedScale.of(signals).penalties(signals)
    assert kendall_tau(found, sum_of_log_ranks(signals)) > 0.9
    more = {name: np.append(values, 9.0) for name, values in signals.items()}
    again = -FixedScale.of(signals).penalties(more)[:-1]
    np.testing.assert_array_equal(again, found, "new networks change no other one")


def test_on_a_fixed_scale_no_value_counts_without_end_and_a_constant_one_not_at_all():
    scale = FixedScale.of({"a": np.arange(9.0), "b": np.ones(9)})
    far, farther = scale.penalties({"a": np.array([-1e6, -1e9]), "b": np.array([1, 5])})
    assert far == farther < 10


def test_normal_scores_are_symmetric_quantiles():
    np.testing.assert_allclose(
        normal_scores(np.array([[10.0], [30.0], [20.0]]))[:, 0], [-0.967422, 0.967422, 0], atol=1e-6
    )


@pytest.mark.parametrize("transform", [lambda v: 5 * v - 2, np.exp, np.cbrt])
def test_scores_depend_on_ranks_alone(transform):
    signals = {"a": RANDOM.normal(size=9), "b": RANDOM.normal(size=9)}
    others = {name: transform(values) for name, values in signals.items()}
    np.testing.assert_allclose(sum_of_log_ranks(signals), sum_of_log_ranks(others))
    np.testing.assert_allclose(features(signals), features(others))


def test_a_signal_that_is_the_same_for_all_is_no_feature():
    found = features({"a": np.arange(5.0), "b": np.ones(5)})
    assert (found[:, [1, 3]] == 0).all()
    np.testing.assert_allclose(found[:, [0, 2]].std(axis=0), 1)


def test_a_strong_ridge_gives_equal_weights_and_a_weak_one_least_squares():
    X = RANDOM.normal(size=(30, 3))
    y = X @ [1.0, 2.0, 3.0]
    np.testing.assert_allclose(ridge(X, y, 1e-9), [1, 2, 3], atol=1e-6)
    strong = ridge(X, y, 1e9)
    np.testing.assert_allclose(strong, strong[0], rtol=1e-6)
    total = X.sum(axis=1)
    assert strong[0] == pytest.approx(float(total @ y / (total @ total)), rel=1e-6)
    np.testing.assert_allclose(ridge(X, -y, 1e9), 0, atol=1e-6)  # equal weights below 0 are 0


def a_set(noise: float, count: int = 200) -> tuple[dict, np.ndarray]:
    """A signal that follows the accuracies, and three that know nothing of them."""
    random = np.random.default_rng(1)
    accuracies = random.normal(size=count)
    signals = {name: random.normal(size=count) for name in ("blind", "deaf", "mute")}
    return {**signals, "seeing": accuracies + noise * random.normal(size=count)}, accuracies


def test_a_few_trained_networks_say_which_signal_counts():
    """On networks that were not trained the calibrated score is far better than equal log-ranks."""
    signals, accuracies = a_set(noise=0.3)
    trained, others = np.arange(20), np.arange(20, 200)
    found = calibrated(signals, trained, accuracies[trained])
    tau = kendall_tau(found.scores[others], accuracies[others])
    equal = kendall_tau(sum_of_log_ranks(signals)[others], accuracies[others])
    assert tau > equal + 0.15, (tau, equal)
    assert found.best_part == "seeing"
    assert abs(found.tau["blind"]) < 0.4 < found.tau["seeing"]


def test_the_tau_of_a_calibration_is_of_networks_it_has_not_seen():
    """Signals that know nothing fit some accuracies by chance, and predict no others."""
    taus = []
    for seed in range(20):
        random = np.random.default_rng(seed)
        signals = {name: random.normal(size=60) for name in "abcde"}
        accuracies = random.normal(size=10)
        found = calibrated(signals, range(10), accuracies)
        taus.append(found.tau["calibrated"])
    assert np.mean(taus) < 0.1, "no luck is kept"


def test_a_score_that_is_worse_than_its_best_part_is_not_safe():
    taus = {"cost": 0.5, "blocks": 0.7, "equal": 0.6}
    for own, safe in ((0.65, False), (0.7, True)):
        found = Calibration(np.zeros(3), {**taus, "calibrated": own}, 5, 0.5)
        assert (found.best_part, found.is_safe) == ("blocks", safe)


def test_too_few_trained_networks_are_refused():
    signals, accuracies = a_set(noise=0.3)
    with pytest.raises(ValueError, match="3 trained networks; a calibration needs 4"):
        calibrated(signals, range(3), accuracies[:3])
