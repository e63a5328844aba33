"""The three networks are what the story needs: good, better, and wrong in a way that only live input shows."""

import json

import numpy as np
import pytest

from simulators.demo.digits import CAMERA, RECIPES, SIGNED_BYTES, measure, train
from simulators.demo.materials import write_materials
from simulators.demo.plan import Plan, fast


def test_no_digit_is_used_for_two_purposes_and_none_is_forgotten(split):
    rows = [tuple(row) for part in (split.train_pixels, split.golden_pixels, split.live_pixels) for row in part]
    from sklearn.datasets import load_digits

    assert sorted(rows) == sorted(tuple(row) for row in load_digits().data.astype(np.float32))
    assert len(set(split.live_ids)) == len(split.live_ids) == len(split.live_labels)


def test_a_live_digit_is_named_by_its_row_in_scikit_learns_own_order(split):
    from sklearn.datasets import load_digits

    digits = load_digits()
    for place in (0, 17, len(split.live_ids) - 1):
        row = int(split.live_ids[place].removeprefix("digit-"))
        assert np.array_equal(split.live_pixels[place], digits.data[row].astype(np.float32))
        assert split.live_labels[place] == digits.target[row]


def test_pixel_scales_map_the_cameras_range_onto_their_own():
    ramp = np.array([[0, 8, 16]], dtype=np.float32)
    assert CAMERA.of(ramp).tolist() == [[0, 8, 16]]
    assert SIGNED_BYTES.of(ramp).tolist() == [[-128, -0.5, 127]]
    assert SIGNED_BYTES.of(ramp).dtype == np.float32


def test_training_the_same_recipe_twice_gives_the_same_network(split, networks):
    again = train(RECIPES[0], split)
    assert np.array_equal(again.probabilities(split.live_pixels), networks[1].probabilities(split.live_pixels))


def test_version_1_is_good_version_2_is_better_and_they_mostly_agree(split, networks):
    plan = Plan()
    good = measure(networks[1], split, None, plan.trial_inferences)
    better = measure(networks[2], split, networks[1], plan.trial_inferences)
    assert 0.88 < good.accuracy < 0.95 < 0.97 < better.accuracy
    assert better.disagreement < 0.15
    assert min(good.confidence_mean, better.confidence_mean) > plan.trial_confidence_min + 0.2


def test_version_3_is_as_good_as_version_2_at_its_own_desk_and_lost_in_the_field(split, networks):
    plan = Plan()
    figures = measure(networks[3], split, networks[2], plan.trial_inferences)
    assert figures.accuracy_own_scale > 0.95
    assert figures.accuracy < 0.4
    assert figures.confidence_mean < plan.trial_confidence_min - 0.2
    assert figures.disagreement > 0.5


@pytest.mark.parametrize("plan", [Plan(), fast(4), Plan(device_count=60)], ids=["full", "fast", "sixty devices"])
def test_no_run_of_readings_on_any_device_makes_a_good_version_fail_its_trial_or_lets_the_bad_one_pass(
    split, networks, plan
):
    count, window = plan.device_count, plan.trial_inferences
    for place in range(count):
        pixels = np.tile(split.live_pixels[place::count], (3, 1))
        answers, confidences = {}, {}
        for version, network in networks.items():
            probabilities = network.probabilities(pixels)
            answers[version] = probabilities.argmax(axis=1)
            confidences[version] = windows(probabilities.max(axis=1), window)
        # The trial decides at the first `window` readings or at any later one: shorter runs are the hardest.
        assert windows(answers[1] != answers[2], window).max() <= plan.trial_disagreement_max
        assert min(confidences[1].min(), confidences[2].min()) >= plan.trial_confidence_min
        assert confidences[3].max() < plan.trial_confidence_min


def windows(values: np.ndarray, length: int) -> np.ndarray:
    return np.convolve(values, np.ones(length) / length, mode="valid")


def test_measuring_the_worst_run_finds_it(split, networks):
    window = 15
    figures = measure(networks[2], split, networks[1], window)
    differs = [
        first != second
        for first, second in zip(
            networks[1].probabilities(split.live_pixels).argmax(axis=1),
            networks[2].probabilities(split.live_pixels).argmax(axis=1),
            strict=True,
        )
    ]
    worst = max(sum(differs[start : start + window]) / window for start in range(len(differs) - window + 1))
    assert figures.disagreement_worst == pytest.approx(worst)


def test_the_materials_are_what_the_command_lines_expect(split, tmp_path):
    device_ids = [f"dev-{number:02d}" for number in range(1, 6)]
    materials = write_materials(tmp_path, device_ids, 15)

    assert [files.version for files in materials.models] == [1, 2, 3]
    for files in materials.models:
        golden = np.load(files.golden, allow_pickle=False)
        assert {name: (golden[name].dtype.name, golden[name].shape) for name in golden.files} == {
            "input.pixels": ("float32", (40, 64)),
            "output.probabilities": ("float32", (40, 10)),
        }
        sample = np.load(files.sample, allow_pickle=False)
        assert {name: sample[name].shape for name in sample.files} == {"input.pixels": (4, 64)}
        # The golden set was recorded on the scale the network was trained on, and its answers are right there.
        assert (golden["output.probabilities"].argmax(axis=1) == split.golden_labels).mean() > 0.85
    assert np.load(materials.models[2].golden)["input.pixels"].min() == -128

    hands = [np.load(materials.live_files[device_id], allow_pickle=False) for device_id in device_ids]
    dealt = [str(reading) for hand in hands for reading in hand["id"]]
    assert sorted(dealt) == sorted(split.live_ids)
    assert all(len(hand["id"]) == len(hand["input.pixels"]) for hand in hands)
    assert json.loads((tmp_path / "labels.json").read_text()) == materials.labels == split.labels_by_id()
    assert {version: len(answers) for version, answers in materials.answers.items()} == dict.fromkeys(
        (1, 2, 3), len(split.live_ids)
    )
