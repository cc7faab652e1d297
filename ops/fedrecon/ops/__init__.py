"""How services run: settings, logs, metrics, the gRPC boundary, lifecycle, storage and the `fedrecon` command.

Services import from here; nothing here imports a service. Other rooms join by entry points:
`fedrecon.settings` (name -> subclass of `fedrecon.ops.settings.Settings`) and
`fedrecon.commands` (name -> typer application or function).

Importing this package, before gRPC, confines gRPC's TLS to version 1.3 in this process: gRPC for Python has no option
for it, but leaves 1.3 alone when the suites of 1.2 are chosen. Chosen is one that needs a key shared beforehand, which
nobody has. Who sets the variable decides.
"""

import os

os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", "ECDHE-PSK-CHACHA20-POLY1305")
