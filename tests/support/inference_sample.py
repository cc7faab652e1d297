"""A plan made by hand for tests of inference: a matrix factorisation of thirty films in ONNX's own text form.

Without torch, and so independent of the compiler: reconstruction by steps or at once, with or without biases.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import parser

from fedrecon.inference.bundles import Bundle, read_bundle, read_checkpoint, read_items
from fedrecon.inference.exporting import Origin, export
from fedrecon.inference.linear_forms import find_linear_form
from fedrecon.inference.verifying import verify_export
from fedrecon.v1 import common_pb2, plan_pb2
from fedrecon.v1.common_pb2 import BlobReference
from fedrecon.v1.task_pb2 import LocalWork
from fedrecon.wire.digests import digest_of
from fedrecon.wire.manifests import write_manifest
from fedrecon.wire.tensors import write_safetensors

ITEMS, FACTORS, MEAN, RATE, RIDGE, BOUND, USER_BIAS = 30, 4, 3.0, 0.1, 2.0, 0.05, 0.25
RETIRED = (3, 17)
PARAMETER, FIELD = plan_pb2.VALUE_SOURCE_PARAMETER, plan_pb2.VALUE_SOURCE_FIELD

HEADER = '<ir_version: 10, opset_import: ["" : 20]>'

TOUCH = f"""{HEADER}
touch (int64[n] items) => (int64[r] rows, int64[n] renumbered) {{
  rows, first, renumbered = Unique<sorted=1>(items)
}}"""

# One step of gradient descent on the mean squared error of the batch; `If`, because a Scan over nothing is refused.
STEPS = f"""{HEADER}
reconstruct (float[r,{FACTORS}] table, float[r,1] biases, float[{FACTORS}] u, float b, int64[n] items, float[n] ratings,
             int64[k,s] order, float[k,s] mask, float[k] rates) => (float[{FACTORS}] u_after, float b_after) {{
  steps = Size(rates)
  any = Cast<to=9>(steps)
  u_after, b_after = If<
    then_branch = some () => (float[{FACTORS}] some_u, float some_b) {{
      some_u, some_b = Scan<num_scan_inputs = 3, body = step (float[{FACTORS}] v, float c, int64[s] at, float[s] real,
                                                              float rate) => (float[{FACTORS}] w, float d) {{
        row = Gather(items, at)
        rated = Gather(ratings, at)
        x = Gather(table, row)
        bias_column = Gather(biases, row)
        axis = Constant<value_ints = [1]>()
        own = Squeeze(bias_column, axis)
        column = Unsqueeze(v, axis)
        product = MatMul(x, column)
        inner = Squeeze(product, axis)
        with_own = Add(inner, own)
        with_user = Add(with_own, c)
        mean = Constant<value_float = {MEAN}>()
        predicted = Add(with_user, mean)
        error = Sub(predicted, rated)
        counted = Mul(error, real)
        total = ReduceSum<keepdims = 0>(real)
        two = Constant<value_float = 2.0>()
        doubled = Mul(counted, two)
        share = Div(doubled, total)
        share_column = Unsqueeze(share, axis)
        weighted = Mul(x, share_column)
        zero_axis = Constant<value_ints = [0]>()
        slope_u = ReduceSum<keepdims = 0>(weighted, zero_axis)
        slope_b = ReduceSum<keepdims = 0>(share)
        move_u = Mul(rate, slope_u)
        move_b = Mul(rate, slope_b)
        w = Sub(v, move_u)
        d = Sub(c, move_b)
      }}>(u, b, order, mask, rates)
    }},
    else_branch = none () => (float[{FACTORS}] none_u, float none_b) {{
      none_u = Identity(u)
      none_b = Identity(b)
    }}>(any)
}}"""

# One damped step along the gradient of the ridge's objective over all examples: a graph without steps.
AT_ONCE = f"""{HEADER}
reconstruct (float[r,{FACTORS}] table, float[{FACTORS}] u, int64[n] items, float[n] ratings, float[n] mask,
             float ridge) => (float[{FACTORS}] u_after) {{
  x = Gather(table, items)
  mean = Constant<value_float = {MEAN}>()
  centred = Sub(ratings, mean)
  counted = Mul(centred, mask)
  axis = Constant<value_ints = [1]>()
  column = Unsqueeze(counted, axis)
  weighted = Mul(x, column)
  zero_axis = Constant<value_ints = [0]>()
  pull = ReduceSum<keepdims = 0>(weighted, zero_axis)
  step = Div(pull, ridge)
  u_after = Add(u, step)
}}"""

PREDICT = f"""{HEADER}
predict (float[r,{FACTORS}] table, float[r,1] biases, float[{FACTORS}] u, float b, int64[n] items)
        => (float[n] scores) {{
  x = Gather(table, items)
  bias_column = Gather(biases, items)
  axis = Constant<value_ints = [1]>()
  own = Squeeze(bias_column, axis)
  column = Unsqueeze(u, axis)
  product = MatMul(x, column)
  inner = Squeeze(product, axis)
  with_own = Add(inner, own)
  with_user = Add(with_own, b)
  mean = Constant<value_float = {MEAN}>()
  scores = Add(with_user, mean)
}}"""

MEANINGS: dict[str, tuple[plan_pb2.ValueSource.ValueType, str]] = {
    "table": (PARAMETER, "table"),
    "biases": (PARAMETER, "biases"),
    "u": (PARAMETER, "user"),
    "b": (PARAMETER, "user_bias"),
    "u_after": (PARAMETER, "user"),
    "b_after": (PARAMETER, "user_bias"),
    "items": (FIELD, "item"),
    "renumbered": (FIELD, "item"),
    "ratings": (FIELD, "rating"),
    "rows": (plan_pb2.VALUE_SOURCE_ROWS, "items"),
    "order": (plan_pb2.VALUE_SOURCE_ORDER, ""),
    "mask": (plan_pb2.VALUE_SOURCE_MASK, ""),
    "rates": (plan_pb2.VALUE_SOURCE_HYPERPARAMETER, "reconstruct.rate"),
    "ridge": (plan_pb2.VALUE_SOURCE_HYPERPARAMETER, "reconstruct.ridge"),
    "scores": (plan_pb2.VALUE_SOURCE_SCORES, ""),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """A plan made by hand, with its checkpoint and vocabulary."""

    bundle: Bundle
    checkpoint: dict[str, NDArray[Any]]
    vocabulary: bytes
    origin: Origin
    manifest: bytes
    blobs: dict[bytes, bytes]

    def write(self, folder: Path) -> Path:
        """Writes the plan's folder, as the compiler does."""
        (folder / "blobs").mkdir(parents=True)
        (folder / "manifest.json").write_bytes(self.manifest)
        for digest, content in self.blobs.items():
            (folder / "blobs" / digest.hex()).write_bytes(content)
        return folder

    def export(self, work: LocalWork | None = None, *, laid: bool = False) -> bytes:
        """Exports as the service does; `laid`: from the plan's own graphs, also where it is linear."""
        work = work or LocalWork()
        items = read_items(self.bundle, self.vocabulary)
        form = None if laid else find_linear_form(self.bundle, self.checkpoint, len(items.keys), work)
        return export(self.bundle, self.checkpoint, items, self.origin, work, form)

    def verify(self, recommender: bytes, work: LocalWork | None = None) -> float:
        items = read_items(self.bundle, self.vocabulary)
        return verify_export(recommender, self.bundle, self.checkpoint, items, work or LocalWork())


def _keep(content: bytes, blobs: dict[bytes, bytes]) -> BlobReference:
    blobs[digest_of(content)] = content
    return BlobReference(digest=digest_of(content), size=len(content))


def graph_message(role: int, text: str, blobs: dict[bytes, bytes]) -> plan_pb2.Graph:
    model = parser.parse_model(text)

    def values(ports: Any) -> list[plan_pb2.GraphValue]:
        return [
            plan_pb2.GraphValue(name=port.name, source=MEANINGS[port.name][0], reference=MEANINGS[port.name][1])
            for port in ports
        ]

    return plan_pb2.Graph(
        role=role,  # type: ignore[arg-type]
        blob=_keep(model.SerializeToString(), blobs),
        inputs=values(model.graph.input),
        outputs=values(model.graph.output),
    )


def make_sample(*, biases: bool = True, at_once: bool = False, **changes: Any) -> Sample:
    """A matrix factorisation, reconstructed by steps or at once, with or without biases."""
    random = np.random.default_rng(7)
    checkpoint = {"table": random.normal(size=(ITEMS, FACTORS)).astype(np.float32) * 0.5}
    if biases:
        checkpoint["biases"] = random.normal(size=(ITEMS, 1)).astype(np.float32) * 0.3
    blobs: dict[bytes, bytes] = {}
    steps, predict = STEPS, PREDICT
    if not biases:
        no_bias = "bias_column = Constant<value = float[1,1] {0.0}>()"
        steps = STEPS.replace("float[r,1] biases, ", "").replace("bias_column = Gather(biases, row)", no_bias)
        predict = PREDICT.replace("float[r,1] biases, ", "").replace("bias_column = Gather(biases, items)", no_bias)
    float32, int64 = common_pb2.DTYPE_FLOAT32, common_pb2.DTYPE_INT64
    parameters = [
        plan_pb2.Parameter(
            name=name, placement=plan_pb2.PLACEMENT_GLOBAL, dtype=float32, shape=values.shape, vocabulary="items"
        )
        for name, values in checkpoint.items()
    ]
    local = plan_pb2.PLACEMENT_LOCAL
    parameters.append(
        plan_pb2.Parameter(
            name="user", placement=local, dtype=float32, shape=[FACTORS], initial=plan_pb2.Initial(uniform_bound=BOUND)
        )
    )
    parameters.append(
        plan_pb2.Parameter(
            name="user_bias", placement=local, dtype=float32, shape=[], initial=plan_pb2.Initial(constant=USER_BIAS)
        )
    )
    vocabulary = plan_pb2.Vocabulary(
        name="items",
        version=2,
        keys=[f"key-{row}" for row in range(ITEMS)],
        titles=[f"Film {row:02} ({1970 + row})" for row in range(ITEMS)],
        retired_rows=RETIRED,
    ).SerializeToString()
    checkpoint_bytes = write_safetensors(checkpoint)
    fields = {
        "fields": [
            plan_pb2.Field(name="item", role=plan_pb2.FIELD_ROLE_INPUT, dtype=int64, vocabulary="items"),
            plan_pb2.Field(
                name="rating", role=plan_pb2.FIELD_ROLE_TARGET, dtype=float32, minimum=0.5, maximum=5.0, limited=True
            ),
        ]
    }
    manifest = plan_pb2.Manifest(
        format=1,
        name="films",
        parameters=parameters,
        graphs=[
            graph_message(plan_pb2.GRAPH_ROLE_TOUCH, TOUCH, blobs),
            graph_message(plan_pb2.GRAPH_ROLE_RECONSTRUCT, AT_ONCE if at_once else steps, blobs),
            graph_message(plan_pb2.GRAPH_ROLE_PREDICT, predict, blobs),
        ],
        hyperparameters={
            "reconstruct.rate": plan_pb2.Hyperparameter(default_value=RATE, minimum=0, maximum=1, per_step=True),
            "reconstruct.ridge": plan_pb2.Hyperparameter(default_value=RIDGE, minimum=1, maximum=9),
        },
        reconstruct_schedule=plan_pb2.Schedule(batch_size=5, epochs=3, maximum_steps=25),
        initial_checkpoint=_keep(checkpoint_bytes, blobs),
        vocabularies={"items": _keep(vocabulary, blobs)},
        **(fields | changes),
    )
    content = write_manifest(manifest)
    bundle = read_bundle(content, lambda blob: blobs[blob.digest])
    origin = Origin("films", 12, digest_of(checkpoint_bytes), digest_of(vocabulary))
    return Sample(bundle, read_checkpoint(bundle, checkpoint_bytes), vocabulary, origin, content, blobs)
