"""Who calls what devices may not: services of the deployment, and operators by name and role.

A service proves itself by the shared key (`service_identity`), or under mutual TLS by a certificate whose common name
is one of `FEDRECON_TLS_SERVICE_NAMES`. An operator shows a token (`operators`). Who holds the shared key may do what an
admin may; commands tell beside it whose they are, for the audit log.

Rule: a token that nobody knows is refused, whatever else is shown.
"""

from __future__ import annotations

import contextvars
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedrecon.ops.key_ring import KeyRing
from fedrecon.ops.operators import Caller, Role, digest_of_token, read_operators
from fedrecon.ops.service_identity import PROOF_METADATA, is_proof
from fedrecon.ops.settings import Settings

TOKEN_METADATA = "authorization"  # noqa: S105 - a name, as RFC 6750 has it
NAME_METADATA = "fedrecon-caller"
_SCHEME = "Bearer "
_COMMON_NAME = "x509_common_name"
_LONGEST_NAME = 100

current_caller: contextvars.ContextVar[str] = contextvars.ContextVar("current_caller", default="")
"""Name of who makes the call that is being answered; empty where nobody had to say."""

current_role: contextvars.ContextVar[Role] = contextvars.ContextVar("current_role", default=Role.VIEWER)
"""What it may do."""


class UnknownTokenError(Exception):
    """The token that was shown is nobody's."""


def bearer(token: str) -> tuple[str, str]:
    """Return the metadata by which an operator shows its token."""
    return TOKEN_METADATA, _SCHEME + token


@dataclass(frozen=True, slots=True)
class Callers:
    """All who are known.

    Attributes:
        keys: Keys that the services share; None where none is called by others.
        operators: By the SHA-256 of their token.
        service_names: Common names of certificates that are services'.
    """

    keys: KeyRing | None = None
    operators: Mapping[str, Caller] | None = None
    service_names: frozenset[str] = frozenset()

    def find(
        self,
        method: str,
        metadata: Iterable[tuple[str, str | bytes]],
        certificate: Mapping[str, Iterable[bytes]],
        now: int,
    ) -> Caller | None:
        """Return who makes a call; None if it does not say.

        Args:
            method: Full name.
            metadata: Of the call.
            certificate: gRPC's authentication context: what a client's certificate says, under mutual TLS.
            now: Unix milliseconds.

        Raises:
            UnknownTokenError: It shows a token that is nobody's.
        """
        shown = list(metadata)
        names = [name.decode(errors="replace") for name in certificate.get(_COMMON_NAME) or ()]
        for key, value in shown:
            if key == TOKEN_METADATA:
                return self._operator(value)
        if self.service_names.intersection(names):
            return Caller(names[0], Role.SERVICE)
        proofs = [value for key, value in shown if key == PROOF_METADATA and isinstance(value, bytes)]
        if self.keys is not None and any(is_proof(self.keys, method, proof, now) for proof in proofs):
            told = next((str(value) for key, value in shown if key == NAME_METADATA), "")
            return Caller(names[0] if names else _clean(told) or "service key", Role.SERVICE)
        return None

    def _operator(self, value: str | bytes) -> Caller:
        if isinstance(value, str) and value.startswith(_SCHEME):
            digest = digest_of_token(value.removeprefix(_SCHEME))
            for known, caller in (self.operators or {}).items():
                if hmac.compare_digest(known, digest):
                    return caller
        raise UnknownTokenError


def known_callers(settings: Settings) -> Callers:
    """Return all who are known to a service by its settings."""
    names = frozenset(filter(None, (name.strip() for name in settings.tls_service_names.split(","))))
    return Callers(settings.round_token_keys, read_operators(settings.operators), names)


def _clean(name: str) -> str:
    """Return a name that a caller gave itself, fit for a log."""
    return "".join(letter for letter in name if letter.isprintable())[:_LONGEST_NAME]
