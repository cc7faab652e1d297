"""One session's part in a secure sum: keys, shares, the masked report, and what unmasks the sum. SecAgg+, client side.

Rules (Bell et al., CCS 2020, and Bonawitz et al., CCS 2017):
- Each step is taken once, in order. The same request again gets the same bytes; another one is refused: a device that
  masked two vectors with one mask, or gave both shares of one neighbour, would reveal a report.
- A refusal ends the part: secrets are forgotten, no further step is taken, and what was answered is answered again.
- Masks and keys are bound to the context that the device computed itself (`fedrecon.wire.sum_context`).
- Only neighbours that shared are masked with, and at least `threshold` of them must have.

Pure: no I/O, no clock; entropy and signature come from the caller.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from fedrecon.device_sdk.errors import SumRefusedError
from fedrecon.device_sdk.neighbourhood import MaskTerms, Neighbourhood, enter, own_entry
from fedrecon.v1 import aggregator_pb2
from fedrecon.v1.aggregator_pb2 import JoinResponse, RevealedShare, SealedShare, ShareResponse, UnmaskResponse
from fedrecon.wire.digests import digest_of
from fedrecon.wire.fixed_point import Vector, read_vector
from fedrecon.wire.key_agreement import KEY_BYTES, Agreement, BadKeyError, BadSealError, SealingKey, public_key_of
from fedrecon.wire.masks import add_masks, pair_sign
from fedrecon.wire.shamir import SECRET_BYTES, DamagedShareError, check_share, point_of, split
from fedrecon.wire.sum_context import keys_message, seed_commitment

Answer = TypeVar("Answer")

_SHARE, _MASK, _REVEAL, _DONE = range(4)
_STEPS = ("share", "mask", "reveal")


@dataclass(frozen=True, slots=True)
class JoinKeys:
    """What a device brings to a group.

    Attributes:
        share_key: fresh public key that seals shares, 32 bytes.
        mask_key: fresh public key that agrees on masks, 32 bytes.
        key_signature: the device's signature over both, bound to attempt and session.
    """

    share_key: bytes
    mask_key: bytes
    key_signature: bytes


@dataclass(slots=True)
class _Secrets:
    """What must not outlive the part."""

    share_key: bytes
    mask_key: bytes
    seed: bytes


@contextlib.contextmanager
def _refusing_bad_keys(index: int) -> Iterator[None]:
    try:
        yield
    except BadKeyError as error:
        raise SumRefusedError(f"the keys of member {index}: {error}", reason="BAD_KEY") from error


class Masking:
    """One session's part in a secure sum.

    Args:
        entropy: gives so many bytes of a CSPRNG.
        device_key_sign: signs with the device's Ed25519 key.
        floors_minimum_group: smallest group that the app joins.
        terms: what the session was promised before it joined.
    """

    def __init__(
        self,
        entropy: Callable[[int], bytes],
        device_key_sign: Callable[[bytes], bytes],
        floors_minimum_group: int,
        terms: MaskTerms,
    ) -> None:
        self._entropy = entropy
        self._terms = terms
        self._smallest_group = max(floors_minimum_group, terms.minimum_group)
        self._secrets: _Secrets | None = _Secrets(entropy(KEY_BYTES), entropy(KEY_BYTES), entropy(SECRET_BYTES))
        self._own = own_entry(terms, public_key_of(self._secrets.share_key), public_key_of(self._secrets.mask_key))
        message = keys_message(terms.round_key, self._own.session_digest, self._own.share_key, self._own.mask_key)
        self._keys = JoinKeys(self._own.share_key, self._own.mask_key, device_key_sign(message))
        self._place: Neighbourhood | None = None
        self._sealing: dict[int, SealingKey] = {}
        self._held: dict[int, tuple[bytes, bytes]] = {}
        self._next = _SHARE
        self._answers: dict[int, tuple[bytes, object]] = {}

    def join_keys(self) -> JoinKeys:
        """Returns what `Join` brings: the same whenever it is asked."""
        return self._keys

    def share(self, joined: JoinResponse) -> tuple[tuple[SealedShare, ...], bytes]:
        """Returns one sealed share for each neighbour, and the commitment to the self-mask seed.

        Args:
            joined: the answer to `Join`: the device's place in the group.

        Raises:
            SumRefusedError: the group is not one that hides this device's report, or it is another than before.
        """
        told = JoinResponse()
        told.CopyFrom(joined)
        for changing in ("phase", "aggregator"):
            told.ClearField(changing)
        return self._once(_SHARE, told.SerializeToString(deterministic=True), lambda: self._share(joined))

    def mask(self, shared: ShareResponse, vector: bytes) -> bytes:
        """Returns the vector under the masks of this device and of the neighbours that shared.

        Args:
            shared: the answer to `Share`: what the neighbours sealed for this device.
            vector: the report.

        Raises:
            SumRefusedError: too few neighbours shared, a share does not open, or it is another request than before.
            ValueError: the vector has another length than the terms say.
        """
        sealed = sorted((each.from_index, each.to_index, each.ciphertext) for each in shared.shares)
        told = repr(sealed).encode() + digest_of(vector)
        return self._once(_MASK, told, lambda: self._mask(shared.shares, read_vector(vector, self._terms.fixed_point)))

    def reveal(self, lists: UnmaskResponse) -> tuple[RevealedShare, ...]:
        """Returns, for each neighbour that shared, the one share that unmasks the sum.

        Args:
            lists: who survived and who was lost.

        Raises:
            SumRefusedError: the lists are not one of everybody, or others than before.
        """
        survivors, dropouts = sorted(lists.survivors), sorted(lists.dropouts)
        told = repr((survivors, dropouts)).encode()
        return self._once(_REVEAL, told, lambda: self._reveal(survivors, dropouts))

    def _once(self, step: int, told: bytes, take: Callable[[], Answer]) -> Answer:
        """Takes a step, or gives the answer of the same step taken before."""
        if step in self._answers:
            known, answer = self._answers[step]
            if known == told:
                return answer  # type: ignore[return-value]  # the answer of this very step
            self._end()
            raise SumRefusedError(
                f"the server asks for the step `{_STEPS[step]}` twice, in different words", reason="ANSWERED_ALREADY"
            )
        if step != self._next:
            self._end()
            raise SumRefusedError(f"the step `{_STEPS[step]}` is not due", reason="OUT_OF_ORDER")
        try:
            made = take()
        except SumRefusedError:
            self._end()
            raise
        self._answers[step] = told, made
        self._next = step + 1
        if self._next == _DONE:
            self._end()
        return made

    def _end(self) -> None:
        self._next = _DONE
        self._secrets = None
        self._sealing.clear()
        self._held.clear()

    def _share(self, joined: JoinResponse) -> tuple[tuple[SealedShare, ...], bytes]:
        place = self._place = enter(joined, self._terms, self._own, self._smallest_group)
        secrets = self._known_secrets()
        points = [point_of(index) for index in place.neighbours]
        key_shares = split(secrets.mask_key, place.threshold, points, self._entropy)
        seed_shares = split(secrets.seed, place.threshold, points, self._entropy)
        agreement = Agreement(secrets.share_key, place.context, place.index)
        sealed = []
        for index, member in place.neighbours.items():
            with _refusing_bad_keys(index):
                self._sealing[index] = agreement.share_key(index, member.share_key)
            sealed.append(
                SealedShare(
                    from_index=place.index,
                    to_index=index,
                    ciphertext=self._sealing[index].seal(key_shares[point_of(index)], seed_shares[point_of(index)]),
                )
            )
        return tuple(sealed), seed_commitment(place.context, place.index, secrets.seed)

    def _mask(self, shares: Iterable[SealedShare], report: Vector) -> bytes:
        place, secrets = self._known_place(), self._known_secrets()
        for share in shares:
            if share.to_index != place.index or share.from_index not in place.neighbours:
                raise SumRefusedError("a share is addressed elsewhere, or from nobody", reason="BAD_SHARE")
            if share.from_index in self._held:
                raise SumRefusedError(f"member {share.from_index} shared twice", reason="BAD_SHARE")
            self._held[share.from_index] = self._open(share)
        self._check_count(len(self._held), "shared")
        agreement = Agreement(secrets.mask_key, place.context, place.index)
        signed: dict[int, list[bytes]] = {1: [secrets.seed], -1: []}
        for index in self._held:
            with _refusing_bad_keys(index):
                seed = agreement.mask_seed(index, place.neighbours[index].mask_key)
            signed[pair_sign(place.index, index)].append(seed)
        masked = Vector(np.array(report.body), np.array(report.tail))
        add_masks(masked, signed[1], signed[-1])
        return masked.to_bytes()

    def _open(self, share: SealedShare) -> tuple[bytes, bytes]:
        try:
            pair = self._sealing[share.from_index].open(share.ciphertext)
            for each in pair:
                check_share(each)
        except (BadSealError, DamagedShareError) as error:
            raise SumRefusedError(f"the share of member {share.from_index}: {error}", reason="BAD_SHARE") from error
        return pair

    def _reveal(self, survivors: list[int], dropouts: list[int]) -> tuple[RevealedShare, ...]:
        if sorted([*survivors, *dropouts]) != sorted(self._held):
            raise SumRefusedError(
                "survivors and dropouts are not, each once, the neighbours that shared", reason="BAD_LISTS"
            )
        self._check_count(len(survivors), "survived")
        alive = set(survivors)
        revealed = []
        for index, (key_share, seed_share) in sorted(self._held.items()):
            kind = aggregator_pb2.SHARE_KIND_SEED if index in alive else aggregator_pb2.SHARE_KIND_KEY
            revealed.append(RevealedShare(index=index, kind=kind, share=seed_share if index in alive else key_share))
        return tuple(revealed)

    def _check_count(self, count: int, did: str) -> None:
        """Raises unless so many neighbours that this device's secrets can be recovered, and that they hide it."""
        place = self._known_place()
        if count < place.threshold:
            raise SumRefusedError(
                f"{count} neighbours {did}; {place.threshold} are needed", reason="TOO_FEW_NEIGHBOURS"
            )
        if place.complete and count + 1 < self._smallest_group:
            raise SumRefusedError(
                f"{count + 1} members {did}; the sum must hold {self._smallest_group}", reason="GROUP_TOO_SMALL"
            )

    def _known_secrets(self) -> _Secrets:
        if self._secrets is None:
            raise SumRefusedError("the part has ended", reason="OUT_OF_ORDER")
        return self._secrets

    def _known_place(self) -> Neighbourhood:
        if self._place is None:
            raise SumRefusedError("the device is in no group", reason="OUT_OF_ORDER")
        return self._place
