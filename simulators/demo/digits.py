"""Handwritten digits as a stage for updates: how the data is split, and three networks trained on it.

The data is scikit-learn's `load_digits`, which ships with it: 1,797 scanned digits of 8 x 8 pixels, each 0..16.
The first network has seen few digits, the second all that there are to learn from. The third learned well, but from
pixels on another scale: it agrees with everything recorded at its own desk and fails on what devices see.
"""

import warnings
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

PIXELS: Final = 64
CLASSES: Final = 10
TRAIN_SAMPLES: Final = 1000
GOLDEN_SAMPLES: Final = 40
SHUFFLE_SEED: Final = 20


@dataclass(frozen=True, slots=True)
class PixelScale:
    """The range that a program gives to the brightness of a pixel."""

    darkest: float
    brightest: float

    def of(self, camera_pixels: Floats) -> Floats:
        """Pixels as a camera gives them (0..16), on this scale."""
        return (self.darkest + camera_pixels * np.float32((self.brightest - self.darkest) / 16)).astype(np.float32)


CAMERA: Final = PixelScale(0, 16)
SIGNED_BYTES: Final = PixelScale(-128, 127)


@dataclass(frozen=True, slots=True)
class DigitSplit:
    """Digits to learn from, digits to prove a file with, and digits that only devices see. Pixels are 0..16."""

    train_pixels: Floats
    train_labels: Labels
    golden_pixels: Floats
    golden_labels: Labels
    live_pixels: Floats
    live_labels: Labels
    live_ids: tuple[str, ...]

    def labels_by_id(self) -> dict[str, int]:
        return {reading: int(label) for reading, label in zip(self.live_ids, self.live_labels, strict=True)}


def load_split() -> DigitSplit:
    """Split the digits the same way every time. A live digit is named by its row in scikit-learn's own order."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.RandomState(SHUFFLE_SEED).permutation(len(digits.data))
    train, golden, live = np.split(order, [TRAIN_SAMPLES, TRAIN_SAMPLES + GOLDEN_SAMPLES])
    pixels, labels = digits.data.astype(np.float32), digits.target.astype(np.int64)
    return DigitSplit(
        train_pixels=pixels[train],
        train_labels=labels[train],
        golden_pixels=pixels[golden],
        golden_labels=labels[golden],
        live_pixels=pixels[live],
        live_labels=labels[live],
        live_ids=tuple(f"digit-{row:04d}" for row in live),
    )


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one version of the model is made."""

    version: int
    description: str
    hidden_units: tuple[int, ...]
    train_samples: int
    epochs: int
    weight_penalty: float
    seed: int
    scale: PixelScale = CAMERA


RECIPES: Final = (
    Recipe(1, "16 hidden units, 200 digits seen", (16,), 200, 200, 1e-4, seed=1),
    Recipe(2, "96 and 48 hidden units, 1,000 digits seen", (96, 48), TRAIN_SAMPLES, 100, 1e-2, seed=2),
    Recipe(3, "trained on signed bytes", (48, 32), TRAIN_SAMPLES, 60, 1.0, seed=4, scale=SIGNED_BYTES),
)


@dataclass(frozen=True, slots=True)
class Layer:
    """A dense layer: ``x @ weights + bias``."""

    weights: Floats
    bias: Floats


@dataclass(frozen=True, slots=True)
class Network:
    """A trained multi-layer perceptron that takes pixels on its recipe's scale and gives class probabilities."""

    recipe: Recipe
    classifier: Any
    """The `sklearn.neural_network.MLPClassifier`, with the input scaling folded into its first layer."""

    def probabilities(self, pixels: Floats) -> Floats:
        """Class probabilities, one row a sample, computed by scikit-learn in double precision."""
        answers: Floats = self.classifier.predict_proba(pixels.astype(np.float64)).astype(np.float32)
        return answers

    def layers(self) -> tuple[Layer, ...]:
        """The dense layers in order; all but the last are followed by ReLU, the last by softmax."""
        return tuple(
            Layer(weights.astype(np.float32), bias.astype(np.float32))
            for weights, bias in zip(self.classifier.coefs_, self.classifier.intercepts_, strict=True)
        )


def train(recipe: Recipe, split: DigitSplit) -> Network:
    """Train one network. Deterministic for a given scikit-learn; a fraction of a second."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    classifier = MLPClassifier(
        recipe.hidden_units,
        max_iter=recipe.epochs,
        alpha=recipe.weight_penalty,
        learning_rate_init=0.003,
        random_state=recipe.seed,
    )
    centre = (recipe.scale.darkest + recipe.scale.brightest) / 2
    half_width = (recipe.scale.brightest - recipe.scale.darkest) / 2
    pixels = recipe.scale.of(split.train_pixels[: recipe.train_samples]).astype(np.float64)
    # The networks are small: a second thread of the linear algebra library would mostly wait for the first.
    with warnings.catch_warnings(), threadpool_limits(1):
        # The number of epochs is part of the recipe: stopping there is the intention, not a failure to converge.
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit((pixels - centre) / half_width, split.train_labels[: recipe.train_samples])
    # The exported file takes pixels as they come, so the centring becomes a part of the first layer.
    classifier.coefs_[0] = classifier.coefs_[0] / half_width
    classifier.intercepts_[0] = classifier.intercepts_[0] - centre * classifier.coefs_[0].sum(axis=0)
    return Network(recipe, classifier)


@dataclass(frozen=True, slots=True)
class LiveFigures:
    """What a network shows on the digits that devices see. Shares are 0..1."""

    version: int
    accuracy: float
    accuracy_own_scale: float
    confidence_mean: float
    disagreement: float | None
    disagreement_worst: float | None
    """Over every run of `window` consecutive live digits, as a trial would see them."""


def measure(network: Network, split: DigitSplit, previous: Network | None, window: int) -> LiveFigures:
    """Measure a network on live digits, against the network that serves before it."""
    probabilities = network.probabilities(split.live_pixels)
    answers = probabilities.argmax(axis=1)
    own_scale = network.probabilities(network.recipe.scale.of(split.live_pixels)).argmax(axis=1)
    disagreement = worst = None
    if previous is not None:
        differs = answers != previous.probabilities(split.live_pixels).argmax(axis=1)
        disagreement = float(differs.mean())
        worst = float(np.convolve(differs, np.ones(window) / window, mode="valid").max())
    return LiveFigures(
        version=network.recipe.version,
        accuracy=float((answers == split.live_labels).mean()),
        accuracy_own_scale=float((own_scale == split.live_labels).mean()),
        confidence_mean=float(probabilities.max(axis=1).mean()),
        disagreement=disagreement,
        disagreement_worst=worst,
    )
