"""Sums of reports: takes them in, keeps them, and turns closed sums into new checkpoints.

Pure cores, which simulations use too: `groups` (the life of a sum group), `secure_sum` and `trusted` (how reports are
summed), `optimizers` and `merging` (how sums become checkpoints). Shells: `ingest`, `snapshots`, `summing`,
`attempts`, `service`.
"""

import fedrecon.ops  # noqa: F401 - before gRPC: see there
