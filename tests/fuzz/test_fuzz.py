"""Every message of the contract, bent: the short form of `make test-fuzz`, and inputs that were found by it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from fedrecon.ops.logs import configure_logs
from support.fuzz_everything import all_subjects, left_out
from support.fuzz_loop import judge, run
from support.fuzz_subjects import Subject, Verdict, read_kept

KEPT = Path(__file__).parent / "kept"
INPUTS, SEED = 10_000, 5
NEVER = {Verdict.CRASHED, Verdict.ACCEPTED}


@pytest.fixture(autouse=True)
def _silent() -> Iterator[None]:
    """Refusals by the thousand are no news."""
    configure_logs("fuzz", level="error")
    yield
    structlog.reset_defaults()


async def test_no_bent_message_crashes_or_is_accepted(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    found: list[str] = []
    async with all_subjects(tmp_path) as subjects:
        outcome = await run(subjects, INPUTS, SEED, kept, found.append)
    assert not found
    assert outcome.total(Verdict.REFUSED) + outcome.total(Verdict.ANSWERED) == INPUTS
    assert outcome.total(Verdict.REFUSED) > INPUTS / 2


async def test_every_call_and_every_answer_to_devices_is_fuzzed(tmp_path: Path) -> None:
    async with all_subjects(tmp_path) as subjects:
        assert left_out(subjects) == set()
        assert "/fedrecon.v1.Aggregator/Join" in left_out(
            [subject for subject in subjects if "/fedrecon.v1.Aggregator/Join" not in subject.covers]
        )


async def test_what_is_valid_is_answered(tmp_path: Path) -> None:
    """Where the valid inputs were refused, nothing bent would get far."""
    refused = []
    async with all_subjects(tmp_path) as subjects:
        for subject in subjects:
            verdicts = {(await judge(subject, parts))[0] for parts in subject.seeds}
            assert not verdicts & NEVER, subject.name
            if Verdict.ANSWERED not in verdicts:
                refused.append(subject.name)
    # No proof is genuine there, a trusted sum has no such phases, nobody joins an unmasked group, an open one is not
    # merged, an operated task has no round yet, and of a refusal nothing is left but its reason.
    expected = (
        "stranger",
        "trusted",
        "masked, unmasking",
        "sums: Merge",
        "operator: ExplainRound",
        "device, spoken: Err",
    )
    assert [name for name in refused if not name.startswith(expected)] == []


async def test_the_same_seed_gives_the_same_inputs(tmp_path: Path) -> None:
    digests = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        async with all_subjects(folder) as subjects:
            digests.append((await run(subjects, 300, SEED, folder, print)).inputs_digest)
    assert digests[0] == digests[1]


async def test_who_changes_what_is_proved_is_found(tmp_path: Path) -> None:
    """The judge itself: an answer to what nobody signed counts as accepted."""

    async def answers_everything(_: object) -> Verdict:
        return Verdict.ACCEPTED

    subject = Subject("open door", (), None, ([b"valid"],), answers_everything)
    outcome = await run([subject], 5, SEED, tmp_path, print)
    assert outcome.total(Verdict.ACCEPTED) == 5
    assert read_kept(outcome.kept[0])[0] == "open door"


async def test_kept_inputs_are_harmless(tmp_path: Path) -> None:
    async with all_subjects(tmp_path) as subjects:
        by_name = {subject.name: subject for subject in subjects}
        for path in sorted(KEPT.glob("*.json")):
            name, parts = read_kept(path)
            verdict, why = await judge(by_name[name], parts)
            assert verdict not in NEVER, f"{path.name}: {why}"
