"""Local parameters at rest: sealed under a key that the app gives, or not stored at all.

AES-256-GCM (NIST SP 800-38D) with a random nonce. What they were made of (model and examples, as a digest) is bound to
them: stored locals are never used with another model, or after the examples have changed.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedrecon.device_sdk.local_parameters import LocalParameters
from fedrecon.wire.tensors import MalformedTensorsError, read_safetensors, write_safetensors

SEALING_KEY_BYTES = 32
_NONCE_BYTES = 12


def seal(key: bytes, local: LocalParameters, made_of: bytes) -> bytes:
    """Returns local parameters that only the key opens.

    Args:
        key: 32 bytes, kept by the app where its platform keeps secrets.
        local: the parameters.
        made_of: digest of what they were made of.
    """
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, write_safetensors(dict(local)), made_of)


def open_sealed(key: bytes, content: bytes, made_of: bytes) -> LocalParameters | None:
    """Returns what was sealed; None if it is damaged, of another key, or made of something else."""
    try:
        opened = AESGCM(key).decrypt(content[:_NONCE_BYTES], content[_NONCE_BYTES:], made_of)
        return LocalParameters(read_safetensors(opened))
    except (InvalidTag, ValueError, MalformedTensorsError):
        return None
