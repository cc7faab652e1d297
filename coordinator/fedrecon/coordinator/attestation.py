"""Where a deployment plugs in what platforms say of a device: Play Integrity, App Attest, a company's own register.

`FEDRECON_ATTESTATION=package.module:name` names an object with the two members of `Attestation`; the device's app gives
what the platform told it (`Device(..., attest=...)`). Without one, anybody may enrol a key: then enrolment binds calls
to keys, and says nothing about who owns them.

Rule: what the verifier raises refuses the device and tells it nothing; the log has the reason.
"""

from __future__ import annotations

import importlib
from typing import Protocol, runtime_checkable

from fedrecon.ops.mistakes import UserMistake


class AttestationRefused(Exception):  # noqa: N818 - named for what happened
    """The platform does not vouch for this device."""


@runtime_checkable
class Attestation(Protocol):
    """Judges what a platform says of a device.

    Attributes:
        name: Told to devices with each challenge, so that the app knows what to ask its platform for.
    """

    name: str

    async def verify(self, device_key: bytes, challenge: bytes, attestation: bytes) -> None:
        """Returns if the platform vouches for the device.

        Args:
            device_key: The key that is to be enrolled, 32 bytes.
            challenge: What the attestation must have been made over: it is fresh and this key's.
            attestation: What the device sent.

        Raises:
            AttestationRefused: It does not.
        """
        ...


def load_attestation(place: str) -> Attestation | None:
    """Returns the verifier that a setting names; None for an empty one.

    Args:
        place: `package.module:name`.

    Raises:
        UserMistake: There is none.
    """
    if not place:
        return None
    module, _, name = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserMistake(
            f"FEDRECON_ATTESTATION={place} cannot be loaded: {error}.", "Name it as package.module:name."
        ) from error
    if not isinstance(found, Attestation):
        raise UserMistake(
            f"FEDRECON_ATTESTATION={place} is no verifier: it has no `name` and `verify`.",
            "See fedrecon.coordinator.attestation.Attestation.",
        )
    return found
