"""What leaves a device under a secure sum does not depend on its examples, but for a vector that looks random."""

from __future__ import annotations

import numpy as np
import pytest

from fedrecon.v1.aggregator_pb2 import UploadRequest
from fedrecon.wire.fixed_point import add, quantise, read_vector, zero
from support.masked_in_memory import Transcript, config_of, run_group, uniform_bytes

MEMBERS, ELEMENTS = 8, 20_000
CONFIG = config_of(MEMBERS, ELEMENTS)


def report(seed: int, examples: int, touched: int) -> bytes:
    generator, update = np.random.default_rng(seed), np.zeros(ELEMENTS)
    update[generator.permutation(ELEMENTS)[:touched]] = generator.normal(0, 0.1, touched)
    return quantise([update], examples, [generator.uniform(0, 20)], CONFIG.fixed_point, bytes(32)).to_bytes()


OTHERS = [report(seed, 5, 300) for seed in range(1, MEMBERS)]
FEW, MANY = report(100, 1, 10), report(200, 30, 15_000)


@pytest.fixture(scope="module")
def transcripts() -> tuple[Transcript, Transcript]:
    """What the first device sends in two groups in which all is the same but its own examples."""
    first, second = (run_group([vector, *OTHERS], CONFIG)[0][0] for vector in (FEW, MANY))
    return first, second


def masked_vector(transcript: Transcript) -> bytes:
    parts = [UploadRequest.FromString(body) for name, body in transcript.sent if name == "Upload"]
    return b"".join(part.chunk.data for part in parts)


def test_the_sum_is_that_of_the_reports() -> None:
    _, opened = run_group([FEW, *OTHERS], CONFIG)
    total = zero(CONFIG.fixed_point)
    for vector in (FEW, *OTHERS):
        add(total, read_vector(vector, CONFIG.fixed_point))
    assert opened.to_bytes() == total.to_bytes()


def test_two_devices_send_as_much_and_the_same_but_for_the_masked_vector(
    transcripts: tuple[Transcript, Transcript],
) -> None:
    first, second = (transcript.sent for transcript in transcripts)
    assert [(name, len(body)) for name, body in first] == [(name, len(body)) for name, body in second]
    for (name, one), (_, other) in zip(first, second, strict=True):
        if name != "Upload":
            assert one == other, name
            continue
        parts = [UploadRequest.FromString(body) for body in (one, other)]
        for part in parts:  # what may differ: the vector, its digests, and the proof of a header that names them
            part.header.ClearField("digest")
            part.header.proof.credentials.ClearField("mac")
            part.chunk.ClearField("data")
            part.chunk.ClearField("digest")
        assert parts[0] == parts[1]
    assert masked_vector(transcripts[0]) != masked_vector(transcripts[1])


def test_the_payload_looks_random_whatever_is_in_it(transcripts: tuple[Transcript, Transcript]) -> None:
    for transcript in transcripts:
        assert abs(uniform_bytes(masked_vector(transcript))) < 5
    assert abs(uniform_bytes(FEW)) > 1_000, "the test would see a vector without masks"
