"""Noise on a sum: as much as was promised, the same for the same sum, and on all that is released."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from fedrecon.aggregator.group_events import Config, Metric, Segment
from fedrecon.aggregator.merging import ClosedSum, combine
from fedrecon.aggregator.privacy import Mechanism, add_noise, next_clip_norm, normals
from fedrecon.wire.fixed_point import METRIC_SCALE, WITHIN_CLIP, add, quantise, zero

CONFIG = Config(
    task="films",
    round=1,
    attempt=1,
    kind=1,
    protocol=2,
    segments=(Segment("items", 20_000, 1.0), Segment("bias", 5_000, 3.0)),
    metrics=(Metric("squared_error", 25.0), Metric(WITHIN_CLIP, 1.0)),
    ring_bits=32,
    maximum_reports=100,
    maximum_weight=1,
    minimum_group=3,
    cohort_size=100,
    plan_digest=bytes(32),
    checkpoint_digest=bytes(32),
    expires_milliseconds=1_000,
)
MECHANISM = Mechanism(noise_multiplier=1.3, clip_norm=2.0, clip_quantile=0.0, denominator=50, seed=bytes(32))


def closed(reports: int = 3) -> ClosedSum:
    fixed_point, generator = CONFIG.fixed_point, np.random.default_rng(1)
    total = zero(fixed_point)
    for _ in range(reports):
        updates = [generator.normal(0, 0.001, segment.elements) for segment in CONFIG.segments]
        add(total, quantise(updates, 7, [3.0, 1.0], fixed_point, bytes(32)))
    return ClosedSum(total, reports)


def test_the_noise_has_the_promised_deviation_in_every_segment() -> None:
    noisy = add_noise(np.zeros(25_000, np.int64), CONFIG.fixed_point, MECHANISM)
    for values, scale in zip((noisy[:20_000], noisy[20_000:]), CONFIG.fixed_point.scales(), strict=True):
        assert np.std(values / scale) == pytest.approx(1.3 * 2.0, rel=0.03)
        assert abs(np.mean(values / scale)) < 4 * 2.6 / math.sqrt(values.size)


def test_noise_of_a_tree_is_taken_away_again_to_the_bit() -> None:
    first, second = bytes([1]) * 32, bytes([2]) * 32
    nothing = np.zeros(25_000, np.int64)
    one = add_noise(nothing, CONFIG.fixed_point, replace(MECHANISM, seed=first))
    after = add_noise(nothing, CONFIG.fixed_point, replace(MECHANISM, seed=second, removed=(first,)))
    alone = add_noise(nothing, CONFIG.fixed_point, replace(MECHANISM, seed=second))
    assert (one + after == alone).all()
    assert (alone != 0).mean() > 0.99


def test_normal_numbers_are_normal() -> None:
    drawn = np.sort(normals(bytes(range(32)), "test", 0, 200_000))
    assert abs(drawn.mean()) < 0.01
    assert drawn.std() == pytest.approx(1, abs=0.01)
    for bound in (0.5, 1.0, 2.0, 3.0):
        within = np.mean(np.abs(drawn) < bound)
        assert within == pytest.approx(math.erf(bound / math.sqrt(2)), abs=0.005)
    assert np.isfinite(drawn).all()


def test_noise_grows_with_the_clip_norm_and_covers_rounding() -> None:
    coarse = replace(CONFIG, ring_bits=16)
    deviation = [
        float(np.std(add_noise(np.zeros(25_000, np.int64), config.fixed_point, MECHANISM)[:20_000]))
        / float(config.fixed_point.scales()[0])
        for config in (CONFIG, coarse)
    ]
    scales = coarse.fixed_point.scales()
    rounding = math.sqrt(20_000 / scales[0] ** 2 + 5_000 / scales[1] ** 2)
    assert deviation[1] == pytest.approx(1.3 * (2.0 + rounding), rel=0.03)
    assert deviation[1] > deviation[0]


def test_the_same_sum_has_the_same_noise_and_another_seed_another() -> None:
    one, two = (combine([closed()], CONFIG, MECHANISM) for _ in range(2))
    other = combine([closed()], CONFIG, replace(MECHANISM, seed=bytes(31) + b"1"))
    assert one.sum_digest == two.sum_digest != other.sum_digest
    assert (one.mean_updates["items"] == two.mean_updates["items"]).all()


def test_a_private_mean_divides_by_what_was_wanted_and_releases_no_metric() -> None:
    exact = combine([closed()], CONFIG)
    private = combine([closed()], CONFIG, MECHANISM)
    assert private.metric_sums == {}
    assert private.sum_digest != exact.sum_digest
    noise = 50 * private.mean_updates["items"] - 3 * exact.mean_updates["items"]
    assert np.std(noise) == pytest.approx(2.6, rel=0.03)
    assert (private.reports, private.clip_norm) == (3, 2.0)


def test_an_adaptive_clip_norm_takes_its_share_of_the_noise() -> None:
    adaptive = replace(MECHANISM, clip_quantile=0.5, denominator=100)
    bit = 0.05 * 100
    assert adaptive.bit_deviation == bit
    assert 1 / adaptive.update_multiplier**2 + 1 / (2 * bit) ** 2 == pytest.approx(1 / 1.3**2)
    with pytest.raises(ValueError, match="nothing for the update"):
        _ = replace(adaptive, denominator=10).update_multiplier


@pytest.mark.parametrize("within", [0, 50, 100])
def test_the_clip_norm_follows_the_quantile(within: int) -> None:
    adaptive = replace(MECHANISM, clip_quantile=0.5, denominator=100)
    noise = float(normals(adaptive.seed, "noise of the clip", 0, 1)[0]) * 5
    expected = 2.0 * math.exp(-0.2 * ((within + noise) / 100 - 0.5))
    assert next_clip_norm(within * METRIC_SCALE, adaptive) == pytest.approx(expected)
    assert next_clip_norm(within * METRIC_SCALE, MECHANISM) == 2.0


def test_the_clip_norm_finds_the_quantile_of_the_norms() -> None:
    generator, norm = np.random.default_rng(2), 0.1
    for number in range(200):
        norms = generator.lognormal(0, 0.5, 200)
        seed = number.to_bytes(32, "little")
        adaptive = replace(MECHANISM, clip_norm=norm, clip_quantile=0.5, denominator=200, seed=seed)
        norm = next_clip_norm(int((norms <= norm).sum()) * METRIC_SCALE, adaptive)
    assert norm == pytest.approx(1.0, rel=0.2)
