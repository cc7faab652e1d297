"""Recommendations for users never seen: which checkpoint is live, its export to one ONNX file, and serving it.

Rules: stateless. No call takes or returns local parameters, nothing of a user is kept or logged. A recommender is
served only after it was proved equal to its plan's own graphs. No torch; `onnx` only to export.
"""

import fedrecon.ops  # noqa: F401 - before gRPC: see there
