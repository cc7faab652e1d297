"""Who is signed in: sessions in memory, each with the operator's own token.

Rules: a session's name is 32 random bytes that only its browser knows, in a cookie that scripts cannot read; beside it
a second secret proves that a change was asked for by our own page. Tokens are never written anywhere. A console that
starts again knows nobody: people sign in anew.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from fedrecon.ops.operators import Role

SESSION_MILLISECONDS = 12 * 3_600_000
"""How long a session lasts without being used."""

_SECRET_BYTES = 32
_MOST_SESSIONS = 1_000


@dataclass(slots=True)
class Session:
    """Somebody who is signed in.

    Attributes:
        name: As the audit log says.
        role: What they may do.
        token: The operator's token; empty for somebody who came by a link of this machine.
        used_at: When it was last used, Unix milliseconds.
        proof: What our own page shows with every change.
    """

    name: str
    role: Role
    token: str = field(repr=False)
    used_at: int
    proof: str = field(default_factory=lambda: secrets.token_urlsafe(_SECRET_BYTES), repr=False)


class Sessions:
    """All who are signed in."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}

    def begin(self, session: Session) -> str:
        """Keep a session and return its secret name. Where there are too many, the one that was used least goes."""
        if len(self._sessions) >= _MOST_SESSIONS:
            del self._sessions[min(self._sessions, key=lambda name: self._sessions[name].used_at)]
        name = secrets.token_urlsafe(_SECRET_BYTES)
        self._sessions[name] = session
        return name

    def find(self, name: str, now: int) -> Session | None:
        """Return a session, and note that it is used; None if there is none, or no longer.

        Args:
            name: Its secret name.
            now: Unix milliseconds.
        """
        session = self._sessions.get(name)
        if session is None or now > session.used_at + SESSION_MILLISECONDS:
            self.end(name)
            return None
        session.used_at = now
        return session

    def end(self, name: str) -> None:
        """Forget a session."""
        self._sessions.pop(name, None)
