"""Surrogates against published predictions, on toys solved by eye, and on degenerate data."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch

from model.nsganetv2.surrogate import (
    SURROGATES,
    AdaptiveSwitching,
    Quality,
    make_surrogate,
    quality,
)
from tests.conftest import golden
from utils.errors import UserError


@pytest.fixture(scope="module")
def networks():
    """260 encodings of networks, and errors: the first 150 to learn, the others to predict."""
    known = golden("surrogates.json")
    X, y = np.array(known["X"], dtype=np.float64), np.array(known["y"])
    return X[:150], y[:150], X[150:], y[150:]


def learned(name, X, y, at, seed=0):
    surrogate = make_surrogate(name, seed)
    surrogate.fit(X, y)
    return surrogate.predict(at)


def noise(*size, seed=0):
    return np.random.default_rng(seed).normal(size=size)


class Nearest:
    """The target of the nearest row; remembers what it has seen."""

    def __init__(self, seed=0, name="nearest"):
        self.name = name

    def fit(self, X, y):
        self.X, self.y = X, y

    def predict(self, X):
        return self.y[((X[:, None] - self.X) ** 2).sum(axis=-1).argmin(axis=1)]


class Constant(Nearest):
    """Predicts the same for all: its tau is NaN."""

    def predict(self, X):
        return np.zeros(len(X))


def test_radial_basis_functions_predict_as_published(networks):
    X, y, at, _ = networks
    published = golden("surrogates.json")["rbf"]["pred"]
    np.testing.assert_allclose(learned("rbf", X, y, at), published, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["rbf", "gp", "carts"])
def test_networks_are_ranked_as_well_as_published(networks, name):
    X, y, at, true = networks
    published = golden("surrogates.json")[name]["tau"]
    assert quality(learned(name, X, y, at), true).tau >= published - 0.01


@pytest.mark.slow
def test_the_perceptron_ranks_where_the_published_one_does_not(networks):
    X, y, at, true = networks
    published = golden("surrogates.json")["mlp"]["taus"]
    assert quality(learned("mlp", X, y, at), true).tau > 0.7 > max(published)


@pytest.mark.slow
@pytest.mark.parametrize("name", SURROGATES)
def test_the_seed_decides_every_bit_and_the_global_streams_stay(networks, name):
    X, y, at, _ = networks
    torch.manual_seed(7)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    surrogate = make_surrogate(name, 3)
    surrogate.fit(X[:12, :5], y[:12])
    first = surrogate.predict(at[:, :5])
    assert first.shape == (len(at),)
    assert first.dtype == np.float64
    assert np.array_equal(first, learned(name, X[:12, :5], y[:12], at[:, :5], seed=3))
    surrogate.fit(X[:12, :5], y[:12])
    assert np.array_equal(first, surrogate.predict(at[:, :5])), "fitting again starts from scratch"
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.slow
@pytest.mark.parametrize("name", ["carts", "mlp"])
def test_another_seed_is_another_model(networks, name):
    X, y, at, _ = networks
    first, second = (learned(name, X[:30], y[:30], at, seed) for seed in (0, 1))
    assert not np.array_equal(first, second)


DEGENERATE = {
    "one row": (noise(1, 4), noise(1)),
    "three rows": (noise(3, 4), noise(3)),
    "as many rows as columns": (noise(4, 4), noise(4)),
    "as many rows as a linear tail needs": (noise(5, 4), noise(5)),
    "equal rows": (np.ones((6, 4)), noise(6)),
    "each row twice, with two targets": (np.repeat(noise(8, 4), 2, axis=0), noise(16)),
    "equal rows of large numbers": (np.repeat(noise(8, 4), 2, axis=0) * [1, 1, 1, 1e4], noise(16)),
    "a constant column": (noise(9, 4) * [1, 0, 1, 1] + 3, noise(9)),
    "dependent columns": (noise(9, 4) @ np.diag([1, 1, 1, 0]) @ noise(4, 4, seed=1), noise(9)),
    "equal targets": (noise(9, 4), np.full(9, 5.0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("name", SURROGATES)
def test_poor_data_give_numbers_and_no_warnings(name, case):
    X, y = DEGENERATE[case]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predicted = learned(name, X, y, np.concatenate([X, noise(2, 4, seed=2)]))
    assert np.isfinite(predicted).all()
    if case in ("one row", "equal targets"):
        np.testing.assert_allclose(predicted, y[0], atol=0.1 if name == "mlp" else 1e-6)


def test_a_plane_in_a_column_that_varies_is_found_next_to_one_that_does_not():
    X = np.stack([np.arange(6.0), np.full(6, 2.0)], axis=1)
    predicted = learned("rbf", X, 3 * X[:, 0] + 1, np.array([[2.5, 2.0], [9.0, 2.0], [9.0, 4.0]]))
    np.testing.assert_allclose(predicted, [8.5, 28, 28], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", SURROGATES)
def test_integer_encodings_are_read(name):
    X = np.array([[0, 2, 16], [1, 1, 3], [2, 0, 9], [0, 1, 1]])
    as_floats = learned(name, X.astype(float), X[:, 2] * 1.0, X)
    np.testing.assert_array_equal(learned(name, X, X[:, 2], X), as_floats)


def test_cart_is_carts_and_other_names_are_refused_in_one_line():
    assert make_surrogate("cart", 0).name == "carts"
    assert [make_surrogate(name, 0).name for name in SURROGATES] == list(SURROGATES)
    line = r"^surrogate: 'kriging' is not known; allowed are rbf, gp, carts, mlp, as, ard$"
    with pytest.raises(UserError, match=line):
        make_surrogate("kriging", 0)


@pytest.mark.parametrize(("n", "folds"), [(23, 10), (9, 4), (4, 2)])
def test_in_cross_validation_each_row_is_predicted_by_a_model_that_has_not_seen_it(n, folds):
    X, held_out = np.arange(n, dtype=np.float64)[:, None], []

    class Spy(Nearest):
        def predict(self, rows):
            assert not np.isin(rows, self.X).any()
            assert len(rows) + len(self.X) == n
            held_out.append(rows[:, 0].tolist())
            return -rows[:, 0]

    AdaptiveSwitching(0, (Spy,)).fit(X, X[:, 0])
    assert sorted(itertools.chain(*held_out)) == X[:, 0].tolist(), "once each"
    sizes = [len(part) for part in held_out]
    assert len(sizes) == folds
    assert np.ptp(sizes) <= 1


@pytest.mark.slow
def test_adaptive_switching_takes_the_candidate_that_suits_the_data():
    X = np.random.default_rng(0).integers(0, 2, (60, 6)).astype(np.float64)
    logic = 4 * (X[:, 0] != X[:, 1]) + (X[:, 0] != X[:, 1]) * X[:, 2]
    surrogate = make_surrogate("as", 0)
    surrogate.fit(X, X @ [1, 2, 4, 8, 16, 32.0])
    assert surrogate.winner in ("rbf", "gp")
    surrogate.fit(X, logic)
    assert surrogate.winner == "carts"
    expected = learned("carts", X, logic, X)
    np.testing.assert_array_equal(surrogate.predict(X), expected, "it is fitted on all rows")


def test_a_candidate_without_a_tau_loses():
    X = np.arange(30.0)[:, None]
    surrogate = AdaptiveSwitching(0, (lambda seed: Constant(name="constant"), Nearest))
    surrogate.fit(X, -(X[:, 0] ** 2))
    assert surrogate.winner == "nearest"
    assert surrogate.predict(np.array([[3.2]])) == -9


def test_a_fold_of_equal_targets_does_not_decide():
    class Identity(Nearest):
        def predict(self, X):
            return X[:, 0]

    # ten folds of two rows, some with equal targets
    X, y = np.arange(20.0)[:, None], np.repeat(np.arange(4.0), 5)
    makers = (lambda seed: Constant(name="constant"), lambda seed: Identity(name="identity"))
    surrogate = AdaptiveSwitching(0, makers)
    surrogate.fit(X, y)
    assert surrogate.winner == "identity"


def test_quality_by_hand():
    true = np.array([1.0, 2.0, 3.0, 4.0])
    found = quality(np.array([1.0, 2.0, 4.0, 3.0]), true)  # one of six pairs is the wrong way round
    assert found == Quality(pytest.approx(math.sqrt(0.5)), pytest.approx(0.8), pytest.approx(4 / 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constant = quality(np.full(4, 2.0), true)
    assert constant.rmse == pytest.approx(math.sqrt(1.5))
    assert math.isnan(constant.rho)
    assert math.isnan(constant.tau)
