"""The device's key: made at first use, kept on the device, known to services only by its public half."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrecon.device_sdk.errors import FedreconError
from fedrecon.device_sdk.files import write_atomically

KEY_BYTES = 32


def device_key(path: Path | None) -> Ed25519PrivateKey:
    """Returns the device's private key, made now if there is none.

    Args:
        path: its file, readable by the owner only; None for a key that lives as long as the process.

    Raises:
        FedreconError: the file holds something else.
    """
    if path is None:
        return Ed25519PrivateKey.generate()
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        key = Ed25519PrivateKey.generate()
        write_atomically(path, key.private_bytes_raw())
        return key
    if len(content) != KEY_BYTES:
        raise FedreconError(
            f"{path} has {len(content)} bytes, a device key has {KEY_BYTES}",
            "remove the file: a new key is made, and the device counts as a new one",
            reason="DAMAGED_KEY",
        )
    path.chmod(0o600)
    return Ed25519PrivateKey.from_private_bytes(content)


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """Returns the public half, 32 bytes."""
    return key.public_key().public_bytes_raw()
