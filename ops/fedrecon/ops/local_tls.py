"""TLS of a stack on one machine: an authority of its own, kept in its home, unless the settings name certificates.

Commands on the same machine trust that authority when they call the stack of their home, and no other service.
"""

from __future__ import annotations

from pathlib import Path

from fedrecon.ops.certificates import LOCAL_NAMES, keep_certificates
from fedrecon.ops.settings import Settings, variable_of

TLS_FOLDER = "tls"
_FIELDS = ("tls_certificate", "tls_key", "tls_server_authority")
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared only


def with_certificates(settings: Settings, home: Path) -> Settings:
    """Return the settings of a stack, with certificates of its own where they name none and TLS is not off.

    Args:
        settings: Of the stack.
        home: Its folder.

    Raises:
        UserMistake: What is kept there is damaged.
        OSError: It cannot be written.
    """
    if settings.tls == "off" or settings.tls_certificate is not None:
        return settings
    names = LOCAL_NAMES if settings.host in {*LOCAL_NAMES, *_EVERYWHERE} else (*LOCAL_NAMES, settings.host)
    files = keep_certificates(home / TLS_FOLDER, names)
    made = {
        "tls_certificate": files.certificate,
        "tls_key": files.key,
        "tls_server_authority": settings.tls_server_authority or files.authority,
    }
    return settings.model_copy(update=made)


def tls_variables(settings: Settings) -> dict[str, str]:
    """Return what the settings say of certificates, as variables for the services."""
    paths = {name: getattr(settings, name) for name in _FIELDS}
    return {variable_of(name): str(Path(path).absolute()) for name, path in paths.items() if path is not None}
