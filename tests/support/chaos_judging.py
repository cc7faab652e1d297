"""Judges a chaos run: what devices were told against what the journal and the checkpoints hold.

Rules: a report that a device saw acknowledged is in the journal, once, and counts in a committed checkpoint or was made
void; what was voided is never counted; every round was committed, or abandoned and tried again; every checkpoint is
the one that the accepted reports give when they are summed and stepped in this process; no committed checkpoint
changes. Whatever breaks a rule is said in words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from fedrecon.aggregator import groups
from fedrecon.aggregator.group_events import Accepted, Phase
from fedrecon.aggregator.groups import Group
from fedrecon.aggregator.merging import ClosedSum, apply, combine
from fedrecon.aggregator.optimizers import from_message
from fedrecon.coordinator import ledger
from fedrecon.coordinator.round_state import Phase as RoundPhase
from fedrecon.coordinator.round_state import Round
from fedrecon.v1.task_pb2 import TaskSpec
from fedrecon.wire.digests import digest_of
from fedrecon.wire.fixed_point import add, read_vector, zero
from fedrecon.wire.tensors import read_safetensors, write_safetensors
from support.chaos_evidence import Evidence
from support.chaos_log import Acknowledged, Note, Sent, Told


@dataclass(slots=True)
class Verdict:
    """What a run came to.

    Attributes:
        acknowledged: Reports that a device saw acknowledged.
        counted: Those that are in a committed checkpoint.
        voided: Those that were made void.
        open: Those of an attempt that had not ended when the run did.
        lost: Those that are none of these.
        doubled: Reports that count more than once.
        committed: Committed rounds.
        abandoned: Abandoned attempts.
        faults: Every broken rule, in words.
    """

    acknowledged: int = 0
    counted: int = 0
    voided: int = 0
    open: int = 0
    lost: int = 0
    doubled: int = 0
    committed: int = 0
    abandoned: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def voided_share(self) -> float:
        return self.voided / self.acknowledged if self.acknowledged else 0.0


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a session's report lies: its group, and the attempt that the group was opened for."""

    group: Group
    attempt: Round

    @property
    def fate(self) -> str:
        if self.group.phase is Phase.ABORTED or self.attempt.phase is RoundPhase.ABANDONED:
            return "VOID"
        if self.attempt.phase is not RoundPhase.COMMITTED:
            return "PENDING"
        assert self.attempt.closed is not None
        return "COUNTED" if self.group.group in self.attempt.closed.groups else "LOST"


def judge(
    evidence: Evidence,
    notes: Iterable[Note],
    read_blob: Callable[[bytes], bytes],
    kept: Mapping[int, bytes],
) -> Verdict:
    """Judges a run.

    Args:
        evidence: What the journal was seen to hold.
        notes: What the devices wrote down.
        read_blob: Returns a blob by its digest, and raises if its bytes are not those.
        kept: Digest of every committed round's checkpoint, as the journal has it in the end.
    """
    notes = list(notes)
    verdict = Verdict()
    attempts = _check_rounds(evidence, kept, verdict)
    places = _places(evidence, attempts, verdict)
    _check_acknowledged(notes, places, verdict)
    _check_fates(notes, places, verdict)
    vectors = {(note.session, note.digest): note.vector for note in notes if isinstance(note, Sent)}
    forged = [
        note
        for note in notes
        if isinstance(note, Sent) and not note.is_masked and digest_of(note.vector) != note.digest
    ]
    verdict.faults += [f"session {note.session.hex()} announced another digest" for note in forged]
    _check_checkpoints(evidence, attempts, vectors, read_blob, verdict)
    return verdict


def _check_rounds(evidence: Evidence, kept: Mapping[int, bytes], verdict: Verdict) -> list[Round]:
    """Folds the rounds, and returns all attempts in order."""
    attempts: list[Round] = []
    newest = max(evidence.rounds, default=0)
    for number, entries in evidence.rounds.items():
        of_round: tuple[Round, ...] = ()
        for entry in entries:
            of_round = ledger.apply(of_round, entry.event, entry.at).attempts
        attempts += of_round
        phases = [attempt.phase for attempt in of_round]
        if number != newest and phases != [RoundPhase.ABANDONED] * (len(phases) - 1) + [RoundPhase.COMMITTED]:
            verdict.faults.append(f"round {number} went {', '.join(phases)}")
    verdict.abandoned = sum(attempt.phase is RoundPhase.ABANDONED for attempt in attempts)
    committed = [attempt for attempt in attempts if attempt.committed is not None]
    verdict.committed = len(committed)
    for attempt in committed:
        assert attempt.committed is not None
        made = attempt.committed.checkpoint.digest
        if kept.get(attempt.number) != made:
            verdict.faults.append(f"the checkpoint of round {attempt.number} changed after its commit")
        for following in attempts:
            if following.number == attempt.number + 1 and following.opened.checkpoint.digest != made:
                verdict.faults.append(f"round {following.number} did not begin with the last checkpoint")
    verdict.faults += [
        f"round {number} is committed, and nobody saw it happen"
        for number in kept
        if number not in {attempt.number for attempt in committed}
    ]
    return attempts


def _places(evidence: Evidence, attempts: list[Round], verdict: Verdict) -> dict[bytes, _Place]:
    """Returns where every accepted report lies; what lies in two places is counted twice."""
    places: dict[bytes, _Place] = {}
    for attempt in attempts:
        for name in attempt.assigned.groups if attempt.assigned is not None else ():
            trail = evidence.trails.get(name)
            if trail is None:
                verdict.faults.append(f"round {attempt.number}.{attempt.attempt}: a group has no events")
                continue
            group = groups.replay(trail.events)
            assert group is not None
            accepted = Counter(
                report.session for event in trail.events if isinstance(event, Accepted) for report in event.reports
            )
            for session, times in accepted.items():
                verdict.doubled += times - 1 + (session in places)
                places[session] = _Place(group, attempt)
    return places


def _check_acknowledged(notes: list[Note], places: Mapping[bytes, _Place], verdict: Verdict) -> None:
    for note in sorted({note for note in notes if isinstance(note, Acknowledged)}, key=lambda note: note.session):
        verdict.acknowledged += 1
        place = places.get(note.session)
        held = None if place is None else place.group.reports.get(note.session)
        if place is None or held != note.digest:
            verdict.lost += 1
            found = "nowhere in the journal" if held is None else "there with another digest"
            verdict.faults.append(f"session {note.session.hex()} was acknowledged and is {found}")
            continue
        match place.fate:
            case "COUNTED":
                verdict.counted += 1
            case "VOID":
                verdict.voided += 1
            case "PENDING":
                verdict.open += 1
            case _:
                verdict.lost += 1
                verdict.faults.append(
                    f"session {note.session.hex()} was acknowledged, and round {place.attempt.number} left it out"
                )


def _check_fates(notes: list[Note], places: Mapping[bytes, _Place], verdict: Verdict) -> None:
    for note in notes:
        if isinstance(note, Told) and note.fate in {"VOID", "COUNTED"}:
            place = places.get(note.session)
            found = "nowhere" if place is None else place.fate
            # A device says itself that it uploaded, also one whose report never came in time.
            if found != note.fate and not (found == "nowhere" and note.fate == "VOID"):
                verdict.faults.append(f"session {note.session.hex()} was told {note.fate} and is {found}")


def _check_checkpoints(
    evidence: Evidence,
    attempts: list[Round],
    vectors: Mapping[tuple[bytes, bytes], bytes],
    read_blob: Callable[[bytes], bytes],
    verdict: Verdict,
) -> None:
    """Sums and steps every committed round again, from the first checkpoint on, each upon the last one made here."""
    committed = [attempt for attempt in attempts if attempt.committed is not None]
    if not committed:
        return
    checkpoint, state = read_blob(committed[0].opened.checkpoint.digest), None
    for attempt in committed:
        made, closed = attempt.committed, attempt.closed
        assert made is not None
        assert closed is not None
        sums = []
        for name in closed.groups:
            group = groups.replay(evidence.trails[name].events)
            assert group is not None
            fixed_point = group.config.fixed_point
            total = zero(fixed_point)
            for session, digest in group.reports.items():
                vector = vectors.get((session, digest))
                if vector is None:
                    verdict.faults.append(f"round {attempt.number} counts a report that no device sent")
                    return
                add(total, read_vector(vector, fixed_point))
            sums.append(ClosedSum(total, len(group.reports)))
            config = group.config
        if sum(one.reports for one in sums) != made.reports:
            verdict.faults.append(f"round {attempt.number} counts {made.reports} reports, its groups others")
        round_sum = combine(sums, config)
        before = None if state is None else read_safetensors(state)
        optimizer = from_message(TaskSpec.FromString(attempt.opened.spec).optimizer)
        after, kept = apply(round_sum, read_safetensors(checkpoint), optimizer, before)
        checkpoint, state = write_safetensors(after), write_safetensors(kept)
        if round_sum.sum_digest != made.sum_digest:
            verdict.faults.append(f"round {attempt.number} holds another sum than its reports give")
        for what, here, there in (
            ("checkpoint", checkpoint, made.checkpoint),
            ("optimizer state", state, made.optimizer_state),
        ):
            if there is None or digest_of(here) != there.digest or read_blob(there.digest) != here:
                verdict.faults.append(f"the {what} of round {attempt.number} is not the one that its reports give")
                return
