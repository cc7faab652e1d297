"""Labels of metrics that come from devices: few, whatever devices say."""

from __future__ import annotations

from fedrecon.coordinator.labels import OTHER, Versions, shape_label
from fedrecon.coordinator.measures import Measures
from fedrecon.coordinator.population import DAY_MILLISECONDS
from fedrecon.coordinator.round_events import Finish, Outcome
from fedrecon.ops.metrics import Metrics


def test_sessions_are_counted_by_their_shape() -> None:
    metrics = Metrics.create("coordinator")
    shapes = ["-v[]+^", "-v[]+^", "-v[!", "-v[]+#", "^" * 64, ""]
    Measures(metrics).note_finishes(
        [Finish(bytes([number]), Outcome.UPLOADED, shape) for number, shape in enumerate(shapes)], 4_000
    )
    counted = {
        sample.labels["shape"]: sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "fedrecon_session_shapes_total" and sample.value
    }
    assert counted == {"-v[]+^": 2, "-v[!": 1, "-v[]+#": 1, OTHER: 2}


def test_a_device_counts_once_for_its_version_until_it_is_gone() -> None:
    metrics = Metrics.create("coordinator")
    measures, now = Measures(metrics), 20_000 * DAY_MILLISECONDS
    for device, version in [(1, "0.1.0"), (2, "0.1.0"), (1, "0.1.0"), (3, "0.2.0"), (4, "a lie")]:
        measures.note_version(version, device, now)

    def devices(version: str) -> float | None:
        return metrics.registry.get_sample_value("fedrecon_device_versions", {"version": version})

    assert (devices("0.1.0"), devices("0.2.0"), devices(OTHER)) == (2, 1, 1)
    measures.note_version("0.1.0", 9, now + 2 * DAY_MILLISECONDS)
    assert devices("0.1.0") == 1


def test_versions_that_devices_make_up_do_not_grow_without_end() -> None:
    versions = Versions()
    labels = {versions.note(f"1.{number}.0", number, 0)[0] for number in range(1_000)}
    assert len(labels) == 31
    label, census = versions.note("1.0.0", 5_000, 0)
    assert (label, census.devices) == ("1.0.0", 2)
    assert shape_label("-" * 64) == OTHER
