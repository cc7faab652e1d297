"""What two members of a group know together and nobody else: the seed of their mask, and the key that seals shares.

Both come from X25519 (RFC 7748) through HKDF-SHA256 (RFC 5869) with an empty salt and, as info, the ASCII label, the
context (32 bytes), and the indices of both members, the smaller first, in 4 bytes each, little-endian. The mask's seed
comes from the mask keys under the label `fedrecon mask 1`, the key of shares from the share keys under
`fedrecon share 1`.

A pair of shares is sealed by AES-256-GCM (NIST SP 800-38D) over the share of the sender's mask key (33 bytes) and the
share of its self-mask seed (33 bytes). The nonce is sender and receiver in 4 bytes each, little-endian, and 4 zero
bytes: a key seals one message in each direction, and keys are fresh for every session. The additional data is context,
sender, receiver, in 32, 4 and 4 bytes. Sealed they are 82 bytes.
"""

from __future__ import annotations

import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedrecon.wire.shamir import SHARE_BYTES

KEY_BYTES = 32
SEALED_BYTES = 2 * SHARE_BYTES + 16

_MASK_LABEL = b"fedrecon mask 1"
_SHARE_LABEL = b"fedrecon share 1"
_FIELD_PRIME = (1 << 255) - 19
_SMALL_ORDER = frozenset(
    {
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        _FIELD_PRIME - 1,
    }
)
"""The points of order 1, 2, 4 and 8 of the curve and its twist (D. J. Bernstein, Curve25519: new Diffie-Hellman speed
records, PKC 2006): whoever agrees with one of them gets zero."""


class BadKeyError(ValueError):
    """A public key is none that two members could agree with."""


class BadSealError(ValueError):
    """Sealed shares do not open: they are damaged, or were made for another pair or another context."""


def public_key_of(private_key: bytes) -> bytes:
    """Returns the X25519 public key of 32 private bytes.

    Example:
        >>> public_key_of(bytes(range(32))).hex()[:16]
        '8f40c5adb68f2562'
    """
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def check_public_key(public_key: bytes) -> None:
    """Raises unless a public key has its one encoding and is of no small order.

    Raises:
        BadKeyError: agreeing with it would fail, or give what everybody knows.
    """
    number = int.from_bytes(public_key, "little")
    if len(public_key) != KEY_BYTES or number >= _FIELD_PRIME:
        raise BadKeyError(f"an X25519 public key has {KEY_BYTES} bytes and is below 2^255 - 19")
    if number in _SMALL_ORDER:
        raise BadKeyError("a public key is of small order")


class Agreement:
    """One member's side of what it agrees on with others under one private key.

    Args:
        private_key: 32 bytes.
        context: the context of the sum.
        member: the member's index.

    Raises:
        ValueError: the key has another length.
    """

    def __init__(self, private_key: bytes, context: bytes, member: int) -> None:
        self._private_key = X25519PrivateKey.from_private_bytes(private_key)
        self._context = context
        self._member = member

    def mask_seed(self, other: int, mask_key: bytes) -> bytes:
        """Returns the seed of the mask of a pair, 32 bytes; the private key must be the one for masks.

        Args:
            other: index of the other member.
            mask_key: its public key for masks.

        Raises:
            BadKeyError: the key is of small order or malformed.
        """
        return self._derive(_MASK_LABEL, other, mask_key)

    def share_key(self, other: int, share_key: bytes) -> SealingKey:
        """Returns the key that seals shares between a pair; the private key must be the one for shares.

        Args:
            other: index of the other member.
            share_key: its public key for shares.

        Raises:
            BadKeyError: the key is of small order or malformed.
        """
        return SealingKey(self._derive(_SHARE_LABEL, other, share_key), self._context, self._member, other)

    def _derive(self, label: bytes, other: int, public_key: bytes) -> bytes:
        first, second = sorted((self._member, other))
        information = label + self._context + struct.pack("<II", first, second)
        return HKDF(SHA256(), KEY_BYTES, None, information).derive(_agree(self._private_key, public_key))


class SealingKey:
    """Seals shares for one other member, and opens that member's.

    Args:
        key: 32 bytes, known to the pair.
        context: the context of the sum.
        member: this side's index.
        other: the other side's.
    """

    def __init__(self, key: bytes, context: bytes, member: int, other: int) -> None:
        self.key = key
        self._cipher = AESGCM(key)
        self._context = context
        self._sending = struct.pack("<II", member, other)
        self._receiving = struct.pack("<II", other, member)

    def seal(self, key_share: bytes, seed_share: bytes) -> bytes:
        """Returns the sealed pair, 82 bytes; to be called once."""
        return self._cipher.encrypt(self._sending + bytes(4), key_share + seed_share, self._context + self._sending)

    def open(self, sealed: bytes) -> tuple[bytes, bytes]:
        """Returns the other member's key share and seed share.

        Raises:
            BadSealError: they were not sealed by it, for this member, in this context.
        """
        try:
            pair = self._cipher.decrypt(self._receiving + bytes(4), sealed, self._context + self._receiving)
        except InvalidTag as error:
            raise BadSealError("a sealed share does not open") from error
        if len(pair) != 2 * SHARE_BYTES:
            raise BadSealError(f"a sealed share holds {len(pair)} bytes; two shares have {2 * SHARE_BYTES}")
        return pair[:SHARE_BYTES], pair[SHARE_BYTES:]


def _agree(private_key: X25519PrivateKey, public_key: bytes) -> bytes:
    try:
        return private_key.exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError as error:  # malformed, or the shared secret is all zero
        raise BadKeyError("a public key is malformed or of small order") from error
