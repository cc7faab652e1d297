"""How many devices a coordinator assigns per second, and how long they wait once their window has closed.

The stack runs as in production, with a real Valkey that keeps every event before anybody is told (fsync always). All
devices of a cohort check in at once, enrolled, each over its own call, signed and heard for the first time; the clock
stops when the last of them holds its
assignment, so the rate counts the draw, the groups opened at the aggregator, the append and the answers.
`share_of_bare_echo` is that rate against a bare grpc.aio server that echoes the same calls of the same client over the
same TLS, in turns in the same run, the median over the turns. Rejections are counted apart.
"""

from __future__ import annotations

import asyncio
import secrets
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrecon.benchmarks.bare import ECHO
from fedrecon.benchmarks.measures import Measure
from fedrecon.benchmarks.processes import running_module
from fedrecon.coordinator import ledger
from fedrecon.coordinator.enrolment import issue_enrolment
from fedrecon.coordinator.round_events import Assigned, Opened
from fedrecon.device_sdk.requests import CHECK_IN
from fedrecon.device_sdk.session import SDK_VERSION
from fedrecon.learning.models.matrix_factorization import ITEMS, matrix_factorization
from fedrecon.learning.planning import compile_plan
from fedrecon.ops.admin_client import open_sync_channel
from fedrecon.ops.journal.redis import RedisJournal
from fedrecon.ops.local_tls import tls_variables
from fedrecon.ops.settings import Settings
from fedrecon.ops.stack import Stack
from fedrecon.ops.task_commands import create_task
from fedrecon.ops.task_specs import build_spec
from fedrecon.ops.tls import open_channel
from fedrecon.v1.admin_pb2_grpc import AdminStub
from fedrecon.v1.common_pb2 import Credentials
from fedrecon.v1.coordinator_pb2 import CheckInRequest, CheckInResponse, Floors
from fedrecon.v1.plan_pb2 import Vocabulary
from fedrecon.wire.manifests import PLAN_FORMATS
from fedrecon.wire.proofs import NONCE_BYTES, call_transcript

SHARE_LIMIT = 0.4
COHORT = 2_000
_TURNS = 5
_SHORT_MILLISECONDS = 50
_LONG_MILLISECONDS = 4_000
_TOKEN_SECONDS = 3_600
_CALL_SECONDS = 120.0
_FILMS, _FACTORS = 60, 4


def measure_check_in() -> list[Measure]:
    """Let cohorts check in to a coordinator, and call a bare server as often, in turns.

    Returns:
        Rates, their ratio, and the wait from the close of a window to the answer.
    """
    with tempfile.TemporaryDirectory(prefix="fedrecon-check-in-") as name:
        folder = Path(name)
        plan = _compile_plan(folder / "plan")
        with (
            Stack(Settings(home=folder / "home")) as stack,
            running_module("fedrecon.benchmarks.bare", folder, tls_variables(stack.settings)) as bare,
        ):
            return asyncio.run(_measure(Bench(stack, plan), bare.target))


@dataclass(frozen=True, slots=True)
class Burst:
    """A cohort that checked in at once.

    Attributes:
        seconds: From the first call to the last answer.
        answered: When each answer came, Unix seconds.
        kinds: How many got which kind of answer.
    """

    seconds: float
    answered: list[float]
    kinds: Counter[str]

    @property
    def assigned_per_second(self) -> float:
        """Assignments per second, first call to last answer."""
        return self.kinds["assignment"] / self.seconds


@dataclass(frozen=True, slots=True)
class Bench:
    """A stack, and the plan that its tasks train.

    Attributes:
        stack: The stack.
        plan: Folder of the plan.
    """

    stack: Stack
    plan: Path

    @property
    def target(self) -> str:
        """Where the coordinator answers."""
        return self.stack.roles["coordinator"].address

    def create(self, name: str, selection_milliseconds: int) -> None:
        """Create a task whose cohort is complete when all devices of a burst are there."""
        spec = build_spec(
            name,
            None,
            [
                f"rounds.report_goal={COHORT}",
                f"rounds.minimum_cohort={COHORT}",
                "rounds.over_selection=1.0",
                f"rounds.selection_milliseconds={selection_milliseconds}",
            ],
        )
        with open_sync_channel(self.target, self.stack.home) as channel:
            create_task(AdminStub(channel), spec, self.plan)

    def check_ins(self, population: str) -> list[bytes]:
        """Return the check-ins of a cohort, each of a device of its own that was enrolled before."""
        keys = self.stack.settings.round_token_keys
        assert keys is not None  # noqa: S101 - a stack that runs has keys
        expires = round((time.time() + _TOKEN_SECONDS) * 1000)
        bodies = []
        for _ in range(COHORT):
            private = Ed25519PrivateKey.generate()
            device_key = private.public_key().public_bytes_raw()
            request = CheckInRequest(
                credentials=Credentials(
                    device_key=device_key,
                    token=issue_enrolment(keys, device_key, expires),
                    nonce=secrets.token_bytes(NONCE_BYTES),
                ),
                population=population,
                sdk_version=SDK_VERSION,
                plan_formats=PLAN_FORMATS,
                floors=Floors(minimum_group=1),
            )
            request.credentials.signature = private.sign(call_transcript(CHECK_IN.path, request, request.credentials))
            bodies.append(request.SerializeToString())
        return bodies

    async def burst(self, target: str, path: str, requests: list[bytes]) -> Burst:
        """Make all calls at once, over TLS."""
        answered: list[float] = []
        kinds: Counter[str] = Counter()
        async with open_channel(target, self.stack.settings.tls_server_authority) as channel:
            await channel.channel_ready()
            method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)

            async def call(request: bytes) -> bytes:
                answer = await method(request, timeout=_CALL_SECONDS)
                answered.append(time.time())
                return answer

            began = time.perf_counter()
            answers = await asyncio.gather(*map(call, requests))
            seconds = time.perf_counter() - began
        if path == CHECK_IN.path:
            kinds.update(str(CheckInResponse.FromString(answer).WhichOneof("answer")) for answer in answers)
        return Burst(seconds, answered, kinds)

    async def window_closed(self, name: str) -> float:
        """Return when the window of a task's first round closed in which its cohort was drawn, Unix seconds."""
        assert self.stack.valkey is not None  # noqa: S101 - no other Redis was named
        journal = await RedisJournal.connect(self.stack.valkey.url)
        try:
            entries = await ledger.load_round_entries(journal, name, 1)
        finally:
            await journal.close()
        (opened,) = (entry.at for entry in entries if isinstance(entry.event, Opened))
        (assigned,) = (entry.at for entry in entries if isinstance(entry.event, Assigned))
        windows = (assigned - opened) // _LONG_MILLISECONDS
        return (opened + windows * _LONG_MILLISECONDS) / 1000


async def _measure(bench: Bench, bare: str) -> list[Measure]:
    bursts, echoes = [], []
    for turn in range(_TURNS + 1):
        name = f"turn-{turn}"
        await asyncio.to_thread(bench.create, name, _SHORT_MILLISECONDS)
        echo = await bench.burst(bare, ECHO, bench.check_ins(name))
        burst = await bench.burst(bench.target, CHECK_IN.path, bench.check_ins(name))
        if turn > 0:  # the first one warms everything up
            bursts.append(burst)
            echoes.append(COHORT / echo.seconds)
    await asyncio.to_thread(bench.create, "waits", _LONG_MILLISECONDS)
    waiting = await bench.burst(bench.target, CHECK_IN.path, bench.check_ins("waits"))
    closed = await bench.window_closed("waits")
    waits = sorted(instant - closed for instant in waiting.answered)
    rates = [burst.assigned_per_second for burst in bursts]
    shares = [rate / echo for rate, echo in zip(rates, echoes, strict=True)]
    others = sum(count for burst in (*bursts, waiting) for kind, count in burst.kinds.items() if kind != "assignment")
    return [
        Measure("cohort", COHORT, "count"),
        Measure("assigned_check_ins_per_second", statistics.median(rates), "1/s"),
        Measure("bare_echoes_per_second", statistics.median(echoes), "1/s"),
        Measure("share_of_bare_echo", statistics.median(shares), "ratio", SHARE_LIMIT, "at least"),
        Measure("not_assigned", others, "count"),
        Measure("seconds_from_close_to_answer_p50", waits[len(waits) // 2], "s"),
        Measure("seconds_from_close_to_answer_p99", waits[int(0.99 * len(waits))], "s"),
    ]


def _compile_plan(folder: Path) -> Path:
    keys = [f"film-{number}" for number in range(_FILMS)]
    vocabulary = Vocabulary(name=ITEMS, version=1, keys=keys, titles=keys)
    compile_plan(matrix_factorization(_FILMS, _FACTORS), {ITEMS: vocabulary}, Ed25519PrivateKey.generate(), folder)
    return folder
