"""Declared steps on a real agent: labels as a file, and other steps for the same bytes as an update of its own."""

import numpy as np
import pytest

from manifests.canonical import digest_of
from manifests.processing import LabelFile, Processing
from tests.tiny_models import GOOD, TinyModel
from tests.wire.agent.conftest import until

pytestmark = [pytest.mark.wire, pytest.mark.timeout(120)]
LABELS = b"north\neast\nsouth\nwest\n"


def test_labels_come_as_a_file_and_new_steps_for_the_same_bytes_go_through_a_trial(device):
    # The sensor counts in thousands; without its steps the model would be told that everything is certain.
    clear = np.eye(4, dtype=np.float32)[np.arange(8) % 2]
    device.use_readings(clear * 1000, [f"reading-{number % 2}" for number in range(8)])
    file = LabelFile(digest=digest_of(LABELS), size_bytes=len(LABELS), target="digits/1/labels.txt")
    device.artifacts.files[file.target] = LABELS
    scale = {"inputs": [{"steps": [{"step": "scale", "factor": 0.001}]}]}
    named = {**scale, "outputs": [{"steps": [{"step": "labels"}]}], "labelFile": file.to_wire()}
    first = device.publish(TinyModel.of(GOOD), 1, processing=Processing.from_wire(named))
    device.desire(first)
    device.start()
    device.until_reported("committed", 1)
    served = device.until_served(1)
    assert (served.reading, served.prediction) in {("reading-0", "north"), ("reading-1", "east")}
    # e^5 / (e^5 + 3): the reading was scaled down before the model saw it.
    assert served.confidence == pytest.approx(0.980186, abs=1e-4)

    plain = {**named, "outputs": [{"steps": [{"step": "labels"}]}], "labels": ["n", "e", "s", "w"], "labelFile": None}
    wire = {**first.to_wire(), "generation": 2, "processing": Processing.from_wire(plain).to_wire()}
    wire["trial"] = {**wire["trial"], "maxDisagreement": 0.5}
    device.desire(type(first).from_wire(wire))
    # Every label differs from the one before, which is what a trial is there to see.
    report = device.until_reported("revertedQuarantined", 2)
    assert report.error.code == "TRIAL_DISAGREEMENT"
    count = len(device.envelopes())
    # What the trial had scored may still come in behind the report.
    again = until(lambda: [one for one in device.envelopes()[count:] if one.generation == 1], "generation 1 serves")
    assert again[0].prediction in {"north", "east"}

    device.desire(type(first).from_wire({**wire, "generation": 3, "trial": {**wire["trial"], "maxDisagreement": 1.0}}))
    device.until_reported("committed", 3)
    count = len(device.envelopes())
    assert device.until_served(1, after=count).prediction in {"n", "e"}
