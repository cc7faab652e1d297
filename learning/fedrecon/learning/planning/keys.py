"""Publisher keys: who may put a plan on a device.

Ed25519 (RFC 8032). The private key is a PKCS #8 PEM file that only its owner may read; an app trusts the public key,
32 bytes, written as 64 hexadecimal digits. A signature covers the ASCII bytes `fedrecon plan 1` and the plan's
digest, so that it can never be taken for a signature of anything else.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedrecon.learning.planning.values import PlanError
from fedrecon.v1 import plan_pb2

SIGNED_PREFIX = b"fedrecon plan 1"


def generate_key(path: Path) -> str:
    """Writes a new private key to `path` and returns the public key as 64 hexadecimal digits.

    Raises:
        PlanError: the file exists (a key is never overwritten: plans signed with it would be lost), or its folder
            does not.
    """
    key = Ed25519PrivateKey.generate()
    content = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise PlanError(f"{path} exists; a key is never overwritten: choose another path") from error
    except OSError as error:
        raise PlanError(f"cannot write the key to {path}: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return public_key_of(key).hex()


def read_key(path: Path) -> Ed25519PrivateKey:
    """Returns the private key of a PEM file.

    Raises:
        PlanError: the file cannot be read or is no Ed25519 key.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise PlanError(f"cannot read the key {path}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise PlanError(f"{path} is no unencrypted private key in PEM form: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise PlanError(f"{path} is no Ed25519 key; make one with `fedrecon plan keygen`")
    return key


def public_key_of(key: Ed25519PrivateKey) -> bytes:
    """Returns the 32 bytes of the public key."""
    return key.public_key().public_bytes_raw()


def sign(key: Ed25519PrivateKey, digest: bytes) -> plan_pb2.PlanSignature:
    """Returns the publisher's word for the plan with this digest."""
    return plan_pb2.PlanSignature(publisher_key=public_key_of(key), signature=key.sign(SIGNED_PREFIX + digest))


def verify_signature(signature: plan_pb2.PlanSignature, digest: bytes) -> None:
    """Raises unless the publisher named in `signature` signed the plan with this digest.

    Raises:
        PlanError: the signature or the key is wrong.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(signature.publisher_key)
        key.verify(signature.signature, SIGNED_PREFIX + digest)
    except (ValueError, InvalidSignature) as error:
        raise PlanError(
            f"the signature does not belong to plan {digest.hex()} and key {signature.publisher_key.hex()}"
        ) from error
