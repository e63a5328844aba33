"""What is counted of models and read of the device, what of it is news, and what of it fits into a twin."""

from datetime import UTC, datetime

import msgspec
import pytest

from device_agent.adapters.device_readings import read_device
from device_agent.core.health import (
    HEALTH_BYTES_MAX,
    LABEL_CHARACTERS_MAX,
    LABELS_KEPT_MAX,
    LABELS_REPORTED_MAX,
    DeviceReadings,
    Histogram,
    ModelHealth,
    health_of,
    is_news,
    reported_mirror,
    reported_sensor,
)
from device_agent.ports import MirrorFacts, SensorFacts
from manifests.twin import LATENCY_BOUNDS_MS, ReportedSection, read_reported

MIRROR = reported_mirror(MirrorFacts(published=1, dropped=2, is_connected=True))
DEVICE = DeviceReadings(
    uptime_s=100, temperature_c=50.0, memory_bytes=50_000_000, memory_available_bytes=400_000_000,
    disk_free_bytes=10**9, load_average=0.2,
)  # fmt: skip


SENSOR = SensorFacts(
    kind="mqtt", taken=5, ignored=0, failed=1, dropped=0, last_at=datetime(2026, 3, 1, 12, tzinfo=UTC),
    has_ended=False, problem="no broker " * 100,
)  # fmt: skip


def test_a_latency_on_a_bound_counts_below_it_and_one_above_all_in_the_last_bucket():
    histogram = Histogram()
    for latency_ms in (0.0, 0.1, 0.1001, 2500, 2500.1):
        histogram.add(latency_ms)
    assert histogram.counts == [2, 1, *[0] * 11, 1, 1]
    assert len(histogram.counts) == len(LATENCY_BOUNDS_MS) + 1


def test_a_quantile_is_the_bound_of_its_bucket():
    histogram = Histogram()
    assert histogram.quantile_ms(0.5) is None
    for latency_ms in [0.05] * 98 + [7.0] + [5000.0]:
        histogram.add(latency_ms)
    assert [histogram.quantile_ms(share) for share in (0.5, 0.98, 0.99, 1.0)] == [0.1, 0.1, 10, None]


def test_labels_beyond_the_bound_are_counted_together_and_none_is_lost():
    model = ModelHealth()
    for number in range(LABELS_KEPT_MAX + 50):
        for _ in range(3 if number < 5 else 1):
            model.add(1.0, f"label {number}", is_error=False)
    model.add(1.0, None, is_error=False)
    model.add(1.0, None, is_error=True)
    reported = model.reported()
    assert [(p.label, p.count) for p in reported.predictions[:5]] == [(f"label {n}", 3) for n in range(5)]
    assert len(model.labels) == LABELS_KEPT_MAX
    assert len(reported.predictions) == LABELS_REPORTED_MAX
    labelled = LABELS_KEPT_MAX + 50 + 2 * 5
    assert sum(p.count for p in reported.predictions) + reported.other_predictions == labelled
    assert (reported.inferences, reported.errors, sum(reported.latency_counts)) == (labelled + 2, 1, labelled + 1)


def test_a_label_is_cut_and_holds_nothing_that_a_twin_refuses():
    model = ModelHealth()
    model.add(1.0, "a b.c$\n\x00" + "x" * 100, is_error=False)
    (label,) = [prediction.label for prediction in model.reported().predictions]
    assert label.startswith("a b.c$??xxx")
    assert len(label) == LABEL_CHARACTERS_MAX


def busy_model(inferences: int) -> ModelHealth:
    model = ModelHealth()
    for number in range(inferences):
        model.add(number % 40, f"a rather long label, as people give them {number % 30}", is_error=False)
    return model


@pytest.mark.parametrize("count", [1, 5, 20, 200])
def test_health_of_many_models_stays_within_its_part_of_the_twin(count):
    models = {f"model-{number:03}": busy_model(30 + number) for number in range(count)}
    health = health_of(models, DEVICE, {"link": 3, "sensor": 0}, 5.0)
    assert len(msgspec.json.encode(health)) <= HEALTH_BYTES_MAX
    assert health.errors == {"link": 3}
    # Who worked most is kept longest.
    assert f"model-{count - 1:03}" in health.models
    read = read_reported(ReportedSection(health=health).to_wire())
    assert read.health == health


def test_the_sensor_is_told_with_its_problem_cut():
    told = reported_sensor(SENSOR)
    assert (told.kind, told.taken, told.last_at, len(told.problem)) == ("mqtt", 5, "2026-03-01T12:00:00+00:00", 200)


def test_the_mirror_is_told_with_what_it_lost():
    health = health_of({}, DEVICE, {}, 5.0, None, MIRROR)
    wire = ReportedSection(health=health).to_wire()["health"]["mirror"]
    assert wire == {"published": 1, "dropped": 2, "isConnected": True}
    assert "mirror" not in ReportedSection(health=health_of({}, DEVICE, {}, 5.0)).to_wire()["health"]


def test_the_same_again_is_no_news_but_an_inference_an_error_or_heat_is():
    told = health_of({"m": busy_model(10)}, DEVICE, {}, 5.0)
    assert is_news(None, told)
    later = DeviceReadings(**{**{name: getattr(DEVICE, name) for name in DEVICE.__slots__}, "uptime_s": 900})
    assert not is_news(told, health_of({"m": busy_model(10)}, later, {}, 805.0))
    news = {
        "an inference": health_of({"m": busy_model(11)}, DEVICE, {}, 5.0),
        "an error": health_of({"m": busy_model(10)}, DEVICE, {"link": 1}, 5.0),
        "heat": health_of({"m": busy_model(10)}, _with(temperature_c=60.0), {}, 5.0),
        "a sensor that fell silent": health_of({"m": busy_model(10)}, _with(temperature_c=None), {}, 5.0),
        "a reading": health_of({"m": busy_model(10)}, DEVICE, {}, 5.0, reported_sensor(SENSOR)),
        "a message to the mirror": health_of({"m": busy_model(10)}, DEVICE, {}, 5.0, None, MIRROR),
        "less disk": health_of({"m": busy_model(10)}, _with(disk_free_bytes=8 * 10**8), {}, 5.0),
    }
    assert [what for what, now in news.items() if not is_news(told, now)] == []


def _with(**changes) -> DeviceReadings:
    return DeviceReadings(**{**{name: getattr(DEVICE, name) for name in DEVICE.__slots__}, **changes})


# The device -----------------------------------------------------------------------------------------------------------


def test_this_machine_is_read(tmp_path):
    found = read_device(tmp_path)
    assert found.uptime_s > 0
    assert 10**6 < found.memory_bytes < found.memory_available_bytes + found.memory_bytes
    assert found.disk_free_bytes > 0


def test_the_hottest_sensor_that_makes_sense_counts(tmp_path):
    for number, text in enumerate(["41500\n", "55000\n", "-274000\n", "nonsense\n", "999000\n"]):
        zone = tmp_path / f"thermal_zone{number}"
        zone.mkdir()
        (zone / "temp").write_text(text)
    assert read_device(tmp_path, thermal=tmp_path).temperature_c == 55.0


def test_a_system_that_shows_nothing_costs_only_the_figures(tmp_path):
    found = read_device(tmp_path / "gone", proc=tmp_path, thermal=tmp_path)
    assert (found.uptime_s, found.temperature_c, found.memory_bytes, found.disk_free_bytes) == (None,) * 4


def test_labels_go_before_histograms_and_histograms_before_models():
    def kept(count: int) -> tuple[int, int, int]:
        models = health_of({f"model-{n:03}": busy_model(60) for n in range(count)}, DEVICE, {}, 5.0).models.values()
        return (
            len(models), sum(bool(model.predictions) for model in models), sum(bool(m.latency_counts) for m in models)
        )  # fmt: skip

    assert [kept(count) for count in (3, 12, 60)] == [(3, 3, 3), (12, 0, 12), (60, 0, 0)]
    assert kept(300)[0] < 300
