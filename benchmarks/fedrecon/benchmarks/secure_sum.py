"""What a masked sum costs: processor time on a device and on the aggregator, and bytes on the wire.

A device's time is that of its whole part, as the SDK runs it: fresh keys, the neighbours' signatures, shares, masks,
what it reveals. The aggregator's is that of checking what members send, adding masked vectors, rebuilding secrets, and
taking the masks off; it runs on one core, and at the promised size again with two processes for the wall clock. The
plain sum beside it is what `trusted` does with as many reports in the same run: `plain_sum_ratio` is the aggregator's
time over that.

Machines differ by more than twice in AES and elliptic curves, so the primitives are timed in the same run, and their
share of the whole is told: `client_primitives_share` counts masks, signatures checked and keys agreed on;
`server_primitives_share` masks and keys agreed on.

Every sum is opened and held against the true one.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from fedrecon.aggregator import unmasking
from fedrecon.aggregator.trusted import TrustedSum
from fedrecon.benchmarks.masked_group import ROUND, SimulatedGroup
from fedrecon.benchmarks.measures import Measure
from fedrecon.v1.aggregator_pb2 import JoinRequest, SealedShare, ShareRequest, UnmaskRequest
from fedrecon.wire import fixed_point
from fedrecon.wire.fixed_point import Vector
from fedrecon.wire.key_agreement import SEALED_BYTES
from fedrecon.wire.masks import add_mask
from fedrecon.wire.sum_context import verify_keys

CLIENT_LIMIT_MILLISECONDS = 60.0
SERVER_LIMIT_SECONDS = 6.0
WALL_LIMIT_SECONDS = 3.5

SMALL, LARGE = 185_300, 5_000_000
"""Parameters of a report: MovieLens 1M with 50 factors, and 27 times that."""


@dataclass(frozen=True, slots=True)
class Case:
    """One size of a sum.

    Attributes:
        members: Devices that share.
        parameters: Elements of a report.
        drop_out: Share of them that is lost before its report.
    """

    members: int
    parameters: int
    drop_out: float

    @property
    def name(self) -> str:
        """Return how its measures are called."""
        return f"{self.members}_members_{self.parameters}_parameters_{round(100 * self.drop_out)}_percent_lost"


PROMISED = Case(1_000, SMALL, 0.1)
CASES = (
    Case(100, SMALL, 0.1),
    Case(100, SMALL, 0.3),
    Case(500, SMALL, 0.1),
    Case(500, SMALL, 0.3),
    PROMISED,
    Case(1_000, SMALL, 0.3),
    Case(200, LARGE, 0.1),
)

_MEASURED_CLIENTS = 3
_WORKERS = 2
_TURNS = 5


def measure_secure_sum() -> list[Measure]:
    """Open sums of all sizes.

    Returns:
        Times and bytes of each size, and those that were promised.
    """
    return [each for case in CASES for each in measure(case)]


def measure(case: Case) -> list[Measure]:
    """Open a sum of one size.

    Args:
        case: The size; the wall clock is looked at for the promised one.

    Raises:
        RuntimeError: What came out is not the sum.
    """
    simulated = SimulatedGroup(case.members, case.parameters, case.drop_out)
    clients = [_take_part(simulated, index) for index in sorted(simulated.survivors)[:_MEASURED_CLIENTS]]
    masked = simulated.masked({client.index: client.masked for client in clients})
    shares, reveals = _requests(simulated)

    def seconds(clock: Callable[[], float], executor: Executor | None) -> float:
        began = clock()
        opened = _open(simulated, clients[0].masked, masked, shares, reveals, executor)
        ended = clock()
        if opened.to_bytes() != simulated.plain().to_bytes():
            raise RuntimeError(f"{case}: the opened sum is not the sum of the reports")
        return ended - began

    cpu, plain, promised = seconds(time.process_time, None), _plain_seconds(simulated), case == PROMISED
    walls = []
    if promised:
        with ProcessPoolExecutor(_WORKERS, mp_context=multiprocessing.get_context("spawn")) as executor:
            list(executor.map(time.sleep, [0.5] * _WORKERS))  # both processes are there before anything is timed
            walls.append(seconds(time.perf_counter, executor))
    cpu_milliseconds = 1000 * statistics.median(each.seconds for each in clients)
    primitives = _Primitives.timed(simulated)
    neighbours, survivors = simulated.found.neighbours, len(simulated.survivors)
    pairs = sum(other in simulated.survivors for lost in simulated.lost for other in simulated.neighbours[lost])
    client_floor = (neighbours + 1) * primitives.mask + neighbours * (
        primitives.verification + 2 * primitives.agreement
    )
    server_floor = (survivors + pairs) * primitives.mask + pairs * primitives.agreement
    figures = (
        ("neighbours", simulated.found.neighbours, "count", None),
        ("threshold", simulated.found.threshold, "count", None),
        ("client_cpu_ms", cpu_milliseconds, "ms", CLIENT_LIMIT_MILLISECONDS),
        ("client_primitives_share", 1000 * client_floor / cpu_milliseconds, "ratio", None),
        ("client_sent_bytes", clients[0].sent, "B", None),
        ("client_received_bytes", clients[0].received, "B", None),
        ("plain_report_bytes", simulated.agreed.vector_bytes, "B", None),
        ("server_cpu_seconds", cpu, "s", SERVER_LIMIT_SECONDS),
        ("server_primitives_share", server_floor / cpu, "ratio", None),
        *(("server_wall_seconds_two_cores", wall, "s", WALL_LIMIT_SECONDS) for wall in walls),
        ("masks", survivors + pairs, "count", None),
        ("mask_ms", 1000 * primitives.mask, "ms", None),
        ("plain_sum_cpu_seconds", plain, "s", None),
        ("plain_sum_ratio", cpu / plain, "ratio", None),
    )
    return [
        Measure(name if promised else f"{case.name}.{name}", value, unit, limit if promised else None)
        for name, value, unit, limit in figures
    ]


@dataclass(frozen=True, slots=True)
class _Primitives:
    """Processor time of what a masked sum cannot do without, in seconds.

    Attributes:
        mask: One mask of a report, added.
        agreement: One X25519.
        verification: One Ed25519 signature checked.
    """

    mask: float
    agreement: float
    verification: float

    @classmethod
    def timed(cls, simulated: SimulatedGroup) -> _Primitives:
        """Return them, the medians of several turns."""
        total, member = simulated.plain(), simulated.roster[0]
        private_key, public_key = X25519PrivateKey.generate(), X25519PublicKey.from_public_bytes(member.mask_key)
        return cls(
            mask=_median_seconds(lambda: add_mask(total, bytes(32), 1), 5),
            agreement=_median_seconds(lambda: private_key.exchange(public_key), 50),
            verification=_median_seconds(lambda: verify_keys(ROUND, member), 50),
        )


def _median_seconds(step: Callable[[], object], times: int) -> float:
    """Return the processor time of a step: of so many at a time, the median over turns."""
    turns = []
    for _ in range(_TURNS):
        began = time.process_time()
        for _ in range(times):
            step()
        turns.append((time.process_time() - began) / times)
    return statistics.median(turns)


@dataclass(frozen=True, slots=True)
class _Client:
    """A device that took part.

    Attributes:
        index: Its place in the roster.
        seconds: Processor time.
        masked: Its masked vector.
        sent: Bytes of the messages that it sent, the vector among them.
        received: Bytes of those that it got.
    """

    index: int
    seconds: float
    masked: bytes
    sent: int
    received: int


def _take_part(simulated: SimulatedGroup, index: int) -> _Client:
    joined, shared, lists = simulated.joined(index), simulated.shared(index), simulated.lists(index)
    vector = simulated.vector.to_bytes()
    began = time.process_time()
    masking = simulated.masking(index)
    keys = masking.join_keys()
    shares, commitment = masking.share(joined)
    masked = masking.mask(shared, vector)
    revealed = masking.reveal(lists)
    seconds = time.process_time() - began
    join = JoinRequest(share_key=keys.share_key, mask_key=keys.mask_key, key_signature=keys.key_signature)
    sent = (join, ShareRequest(shares=shares, seed_commitment=commitment), UnmaskRequest(shares=revealed))
    return _Client(
        index=index,
        seconds=seconds,
        masked=masked,
        sent=len(masked) + sum(message.ByteSize() for message in sent),
        received=sum(message.ByteSize() for message in (joined, shared, lists)),
    )


def _requests(simulated: SimulatedGroup) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """Return what all members send when they share, and what survivors send to unmask, as it arrives."""
    shares = {}
    for index, others in simulated.neighbours.items():
        sealed = [SealedShare(from_index=index, to_index=other, ciphertext=bytes(SEALED_BYTES)) for other in others]
        shares[index] = ShareRequest(shares=sealed, seed_commitment=bytes(32)).SerializeToString()
    revealed = simulated.revealed().items()
    return shares, {index: UnmaskRequest(shares=answer).SerializeToString() for index, answer in revealed}


def _open(
    simulated: SimulatedGroup,
    report: bytes,
    masked: Vector,
    shares: Mapping[int, bytes],
    reveals: Mapping[int, bytes],
    executor: Executor | None,
) -> Vector:
    """Do all that the aggregator's core does for a sum, and return it.

    Args:
        simulated: The group.
        report: A masked vector, added once for every survivor.
        masked: The masked sum.
        shares: Requests of all members.
        reveals: Requests of all survivors.
        executor: Two processes; None: all is done here.
    """
    for member in simulated.roster:
        unmasking.check_keys(ROUND, member)
    for index, content in shares.items():
        request = ShareRequest.FromString(content)
        unmasking.check_shares(index, simulated.neighbours[index], request.shares, request.seed_commitment)
    total = fixed_point.zero(simulated.agreed)
    for _ in simulated.survivors:
        fixed_point.add(total, fixed_point.read_vector(report, simulated.agreed))
    group, revealed = simulated.group(), {}
    for index, content in reveals.items():
        revealed[index] = UnmaskRequest.FromString(content).shares
        unmasking.check_reveal(index, group, revealed[index])
    return unmasking.unmask(masked, group, revealed, executor, 1 if executor is None else _WORKERS)


def _plain_seconds(simulated: SimulatedGroup) -> float:
    """Return the processor time of checking and adding as many reports in clear."""
    plain, total, report = TrustedSum(simulated.agreed), fixed_point.zero(simulated.agreed), simulated.vector.to_bytes()
    began = time.process_time()
    for _ in simulated.survivors:
        vector = fixed_point.read_vector(report, simulated.agreed)
        plain.check(vector)
        fixed_point.add(total, vector)
    return time.process_time() - began
