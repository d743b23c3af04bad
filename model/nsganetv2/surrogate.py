"""Surrogates: models that predict the error of an architecture from its encoding.

Source: Lu et al., "NSGANetV2: Evolutionary Multi-Objective Surrogate-Assisted Neural Architecture
Search", ECCV 2020, section 3.3: radial basis functions, a Gaussian process, trees, a perceptron,
and adaptive switching between them. The default of the search, `ard`, is not the paper's
(`model/nsganetv2/gaussian_process.py`).

Axes: n rows (architectures) to fit, m to predict, d columns. Arrays are float64; integers do as
well.
"""

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from scipy.stats import kendalltau, spearmanr
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, DotProduct, WhiteKernel
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional as F

from model.nsganetv2.gaussian_process import RelevanceGaussianProcess
from utils.errors import UserError

Array = NDArray[np.float64]


class Surrogate:
    """A model that may be fitted again and again; the same data give the same bits.

    Unless a subclass says otherwise, its `model` (one of scikit-learn, or a surrogate) does it all.
    """

    name: str
    # what its columns are best: integers as published, or `gene_features.features`
    encoding: Literal["genes", "features"] = "genes"

    @property
    def winner(self) -> str:
        """The name of the surrogate that predicts."""
        return self.name

    def fit(self, X: Array, y: Array) -> None:
        """Learn `y [n]` from `X [n, d]`, n at least 1."""
        self.model.fit(X, y)

    def predict(self, X: Array) -> Array:
        """`X [m, d]` -> `[m]`."""
        return self.model.predict(X)

    def predict_std(self, X: Array) -> Array:
        """`X [m, d]` -> posterior std `[m]`; 0, unless a model has a posterior: `ard` does."""
        return np.zeros(len(X))


@dataclass(frozen=True)
class Quality:
    """Root mean squared error, Spearman's rho and Kendall's tau; these are NaN for constants."""

    rmse: float
    rho: float
    tau: float


def quality(predicted: Array, true: Array) -> Quality:
    """How well `predicted [n]` tells `true [n]`."""
    assert predicted.shape == true.shape == (len(true),), f"{predicted.shape} and {true.shape}"
    if len(true) == 0:
        return Quality(math.nan, math.nan, math.nan)
    rmse = float(np.sqrt(np.mean((predicted - true) ** 2)))
    if np.ptp(predicted) == 0 or np.ptp(true) == 0:  # SciPy would warn
        return Quality(rmse, math.nan, math.nan)
    rho, tau = (float(rank(predicted, true).statistic) for rank in (spearmanr, kendalltau))
    return Quality(rmse, rho, tau)


class RadialBasis(Surrogate):
    """Cubic radial basis functions with a linear tail; nothing is random.

    The tail has no unique solution when columns are constant or dependent or when there are no more
    rows than columns. So the rows are rotated into the least space that holds them, which changes
    no distance; what leaves this space is not known to matter, and is ignored. Equal rows count
    once, with the mean of their targets.
    """

    name = "rbf"

    def __init__(self, seed: int = 0):
        pass

    def fit(self, X: Array, y: Array) -> None:
        X, group = np.unique(X, axis=0, return_inverse=True)
        group = group.ravel()  # NumPy 2.0 gives it a second axis
        y = np.bincount(group, y) / np.bincount(group)
        self.centre = X.mean(axis=0)
        _, spread, axes = np.linalg.svd(X - self.centre, full_matrices=False)
        self.axes = axes[spread > 1e-10 * max(1.0, spread.max())].T
        if self.axes.size == 0:  # all rows are the same
            self.model = lambda rows: np.full(len(rows), y.mean())
        else:
            known = self._rotated(X)
            self.model = RBFInterpolator(known, y, kernel="cubic", degree=1, smoothing=1e-6)

    def predict(self, X: Array) -> Array:
        return self.model(self._rotated(X))

    def _rotated(self, X: Array) -> Array:
        return (X - self.centre) @ self.axes


class GaussianProcess(Surrogate):
    """A linear trend, a Gauss kernel of one length scale, and noise, on standardised columns.

    The trend is a kernel too, so that it stays defined with fewer rows than columns.
    """

    name = "gp"

    def __init__(self, seed: int = 0):
        trend = ConstantKernel(0.01, (1e-6, 1e2)) * DotProduct(0.0, "fixed")
        gauss = ConstantKernel(0.1, (1e-6, 1e2)) * RBF(10.0, (0.1, 1e3))
        kernel = trend + gauss + WhiteKernel(0.01, (1e-6, 1e1))
        process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed)
        self.model = make_pipeline(StandardScaler(), process)

    def fit(self, X: Array, y: Array) -> None:
        with warnings.catch_warnings():  # a part that the data do not need ends at its bound
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.model.fit(X, y)


class Relevance(RelevanceGaussianProcess, Surrogate):
    """A Gaussian process that learns the relevance of each feature, and has a posterior std."""

    name = "ard"
    encoding = "features"

    def __init__(self, seed: int = 0):
        super().__init__()


class Carts(Surrogate):
    """Extremely randomised trees: each on all rows, with half of the columns at each split.

    The paper has 5000 trees with one subset of columns each. These differ more, so that fewer do,
    and rank no worse.
    """

    name = "carts"

    def __init__(self, seed: int = 0, trees: int = 300):
        self.model = ExtraTreesRegressor(trees, max_features=0.5, random_state=seed)


class Perceptron(Surrogate):
    """Three hidden layers of 300 units, with the weights that are best on a fifth of the rows.

    They are trained on the other four fifths. Dropout, Adam and its cosine are the published ones.
    Columns and targets are standardised; with raw ones, as published, it ranks no better than
    chance. Of the 2000 published epochs few are needed then: it soon overfits.
    """

    name = "mlp"

    def __init__(self, seed: int = 0, epochs: int = 300, lr: float = 8e-4):
        self.seed, self.epochs, self.lr = seed, epochs, lr

    def fit(self, X: Array, y: Array) -> None:
        self.scaler, self.mean, self.std = StandardScaler().fit(X), y.mean(), y.std() or 1.0
        rows = self._inputs(X)
        targets = torch.tensor((y - self.mean) / self.std, dtype=torch.float32)
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed accelerators too
            torch.default_generator.manual_seed(self.seed)
            order, fifth = torch.randperm(len(rows)), len(rows) // 5
            # fewer than five rows are too few to split
            train, held = order[fifth:], order[: fifth or len(order)]
            self.network = self._trained(rows[train], targets[train], rows[held], targets[held])

    def predict(self, X: Array) -> Array:
        with torch.no_grad():
            return self.network(self._inputs(X)).numpy().astype(np.float64) * self.std + self.mean

    def _inputs(self, X: Array) -> Tensor:
        return torch.tensor(self.scaler.transform(X), dtype=torch.float32)

    def _trained(
        self, rows: Tensor, targets: Tensor, held: Tensor, held_targets: Tensor
    ) -> nn.Module:
        sizes, layers = (rows.shape[1], 300, 300, 300), []
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        network = nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(300, 1), nn.Flatten(0))
        optimizer = torch.optim.Adam(network.parameters(), self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)
        least, best = math.inf, None
        for _ in range(self.epochs):
            optimizer.zero_grad()
            F.smooth_l1_loss(network.train()(rows), targets).backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                loss = float(F.smooth_l1_loss(network.eval()(held), held_targets))
            if best is None or loss < least:
                least, best = loss, copy.deepcopy(network.state_dict())
        network.load_state_dict(best)
        return network


class AdaptiveSwitching(Surrogate):
    """The candidate that ranks best in 10-fold cross-validation, fitted on all rows.

    Best is the greatest mean of Kendall's tau over the folds, less its standard deviation. All
    candidates see the same folds, of two rows or more. The first wins a tie.
    """

    name = "as"

    def __init__(
        self, seed: int = 0, candidates: Sequence[Callable[[int], Surrogate]] | None = None
    ):
        self.seed = seed
        self.candidates = candidates or (RadialBasis, GaussianProcess, Carts)

    @property
    def winner(self) -> str:
        return self.model.name

    def fit(self, X: Array, y: Array) -> None:
        scores = [self._score(make, X, y) for make in self.candidates] if len(y) > 1 else [0.0]
        self.model = self.candidates[int(np.argmax(scores))](self.seed)
        self.model.fit(X, y)

    def _score(self, make: Callable[[int], Surrogate], X: Array, y: Array) -> float:
        folds = max(2, min(10, len(y) // 2))
        fold, taus = np.random.default_rng(self.seed).permutation(np.arange(len(y)) % folds), []
        for held_out in (fold == part for part in range(folds)):
            if np.ptp(y[held_out]) > 0:  # equal targets rank nobody
                model = make(self.seed)
                model.fit(X[~held_out], y[~held_out])
                taus.append(quality(model.predict(X[held_out]), y[held_out]).tau)
        score = float(np.mean(taus) - np.std(taus)) if taus else math.nan
        return score if np.isfinite(score) else -math.inf  # equal predictions have no tau, and lose


_MODELS = (RadialBasis, GaussianProcess, Carts, Perceptron, AdaptiveSwitching, Relevance)
_MAKERS = {model.name: model for model in _MODELS}
SURROGATES = tuple(_MAKERS)


def make_surrogate(name: str, seed: int) -> Surrogate:
    """The surrogate of that name, not fitted; `cart` is `carts`. `seed` decides all its choices."""
    make = _MAKERS.get("carts" if name == "cart" else name)
    if make is None:
        raise UserError(f"surrogate: {name!r} is not known; allowed are {', '.join(SURROGATES)}")
    return make(seed % 2**32)
