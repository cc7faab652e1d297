"""Publisher keys: who may put a plan on a device.

Ed25519 (RFC 8032). The private key is a PKCS #8 PEM file that only its owner may read; an app trusts the public key,
32 bytes, written as 64 hexadecimal digits. What a signature covers is said in `fedrecon.wire.manifests`.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrecon.learning.planning.values import PlanError


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
    return key.public_key().public_bytes_raw().hex()


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
