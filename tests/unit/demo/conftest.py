"""What several tests of the demo share: the data and the three networks, trained once."""

import pytest

from simulators.demo.digits import RECIPES, DigitSplit, Network, load_split, train


@pytest.fixture(scope="session")
def split() -> DigitSplit:
    return load_split()


@pytest.fixture(scope="session")
def networks(split: DigitSplit) -> dict[int, Network]:
    return {recipe.version: train(recipe, split) for recipe in RECIPES}
