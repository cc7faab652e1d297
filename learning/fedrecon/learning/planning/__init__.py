"""PyTorch models to training plans: ONNX graphs that any device can run, verified, named by content, and signed.

    compiled = compile_plan(matrix_factorization(items=3706), {"items": vocabulary}, read_key(path), directory)

Rules: a plan that differs from torch is never written; weights are inputs and never inside a graph; the same model
gives the same bytes.
"""

from fedrecon.learning.planning.bundle import Bundle, read_bundle
from fedrecon.learning.planning.compilation import CompiledPlan, Verification, compile_plan, verify_plan
from fedrecon.learning.planning.keys import generate_key, read_key
from fedrecon.learning.planning.values import PlanError

__all__ = [
    "Bundle",
    "CompiledPlan",
    "PlanError",
    "Verification",
    "compile_plan",
    "generate_key",
    "read_bundle",
    "read_key",
    "verify_plan",
]
