"""The coordinator: who takes part in which round, and when.

Pure cores: `rounds`, `tasks`, `specs`, `selection`, `pacing`, `stories`. Shells around them: `ledger` (streams of the
journal), `sums` (the aggregator), `runner` (one task at a time), `roster` (all tasks), `service` and `admin` (calls).
"""

import fedrecon.ops  # noqa: F401 - before gRPC: see there
