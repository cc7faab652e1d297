"""A tiny plan, made by hand: a matrix factorisation whose steps are sums, so that tests can redo them in numpy.

- reconstruct: user + sum over steps s and positions p of rate_s * mask_sp * rating_p * items[item_p]
- update: items + the same with the user in place of the item; bias + the sum of rate * mask * rating
- evaluate: the sum over masked examples of (rating - items[item] . user)^2
- predict: items[item] . user
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import onnx.checker
import onnx.helper
import onnx.numpy_helper
import onnx.parser
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrecon.v1 import common_pb2, coordinator_pb2, plan_pb2, task_pb2
from fedrecon.v1.common_pb2 import BlobReference, RoundKey
from fedrecon.v1.coordinator_pb2 import Assignment
from fedrecon.wire import manifests
from fedrecon.wire.digests import digest_of
from fedrecon.wire.tensors import write_safetensors
from fedrecon.wire.vocabularies import write_vocabulary

HEADER = '<ir_version: 10, opset_import: ["": 20]>'
KEYS = tuple(f"film-{row}" for row in range(6))
FACTORS = 2
PUBLISHER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))

TOUCH = """touch (int64[N] item) => (int64[R] rows, int64[N] renumbered) {
  rows, first, inverse, counts = Unique <axis = 0, sorted = 1> (item)
  renumbered = Identity(inverse)
}"""
RECONSTRUCT = """reconstruct (float[2] user, float[R, 2] items, int64[N] item, float[N] rating, int64[S, B] order,
  float[S, B] mask, float[S] rates) => (float[2] user_after) {
  one = Constant <value = int64[1] {1}> ()
  flat = Constant <value = int64[1] {-1}> ()
  zero = Constant <value = int64[1] {0}> ()
  column = Unsqueeze(rates, one)
  weights = Mul(mask, column)
  weight = Reshape(weights, flat)
  position = Reshape(order, flat)
  drawn = Gather(rating, position)
  amount = Mul(weight, drawn)
  which = Gather(item, position)
  vectors = Gather(items, which)
  tall = Unsqueeze(amount, one)
  parts = Mul(tall, vectors)
  total = ReduceSum <keepdims = 0> (parts, zero)
  user_after = Add(user, total)
}"""
RIDGE = """reconstruct (float[2] user, float[R, 2] items, int64[N] item, float[N] rating, float[N] mask, float ridge)
  => (float[2] user_after) {
  one = Constant <value = int64[1] {1}> ()
  zero = Constant <value = int64[1] {0}> ()
  amount = Mul(mask, rating)
  vectors = Gather(items, item)
  tall = Unsqueeze(amount, one)
  parts = Mul(tall, vectors)
  total = ReduceSum <keepdims = 0> (parts, zero)
  count = ReduceSum <keepdims = 0> (mask, zero)
  below = Add(count, ridge)
  mean = Div(total, below)
  user_after = Add(user, mean)
}"""
UPDATE = """update (float[2] user, float[R, 2] items, float[1] bias, int64[N] item, float[N] rating, int64[S, B] order,
  float[S, B] mask, float[S] rates) => (float[R, 2] items_update, float[1] bias_update, float[S] losses) {
  one = Constant <value = int64[1] {1}> ()
  flat = Constant <value = int64[1] {-1}> ()
  zero = Constant <value = int64[1] {0}> ()
  column = Unsqueeze(rates, one)
  weights = Mul(mask, column)
  weight = Reshape(weights, flat)
  position = Reshape(order, flat)
  drawn = Gather(rating, position)
  amount = Mul(weight, drawn)
  which = Gather(item, position)
  index = Unsqueeze(which, one)
  tall = Unsqueeze(amount, one)
  changes = Mul(tall, user)
  empty = Sub(items, items)
  items_update = ScatterND <reduction = "add"> (empty, index, changes)
  bias_update = ReduceSum(amount, zero)
  losses = ReduceSum <keepdims = 0> (mask, one)
}"""
EVALUATE = """evaluate (float[2] user, float[R, 2] items, int64[N] item, float[N] rating, float[N] mask)
  => (float squared_error) {
  one = Constant <value = int64[1] {1}> ()
  zero = Constant <value = int64[1] {0}> ()
  vectors = Gather(items, item)
  products = Mul(vectors, user)
  predicted = ReduceSum <keepdims = 0> (products, one)
  missed = Sub(rating, predicted)
  squared = Mul(missed, missed)
  counted = Mul(squared, mask)
  squared_error = ReduceSum <keepdims = 0> (counted, zero)
}"""
PREDICT = """predict (float[2] user, float[R, 2] items, int64[C] item) => (float[C] scores) {
  one = Constant <value = int64[1] {1}> ()
  vectors = Gather(items, item)
  products = Mul(vectors, user)
  scores = ReduceSum <keepdims = 0> (products, one)
}"""

_sources = {
    "user": (plan_pb2.VALUE_SOURCE_PARAMETER, "user"),
    "user_after": (plan_pb2.VALUE_SOURCE_PARAMETER, "user"),
    "items": (plan_pb2.VALUE_SOURCE_PARAMETER, "items"),
    "bias": (plan_pb2.VALUE_SOURCE_PARAMETER, "bias"),
    "item": (plan_pb2.VALUE_SOURCE_FIELD, "item"),
    "renumbered": (plan_pb2.VALUE_SOURCE_FIELD, "item"),
    "rating": (plan_pb2.VALUE_SOURCE_FIELD, "rating"),
    "rows": (plan_pb2.VALUE_SOURCE_ROWS, "items"),
    "order": (plan_pb2.VALUE_SOURCE_ORDER, ""),
    "mask": (plan_pb2.VALUE_SOURCE_MASK, ""),
    "rates": (plan_pb2.VALUE_SOURCE_HYPERPARAMETER, "rate"),
    "ridge": (plan_pb2.VALUE_SOURCE_HYPERPARAMETER, "ridge"),
    "items_update": (plan_pb2.VALUE_SOURCE_UPDATE, "items"),
    "bias_update": (plan_pb2.VALUE_SOURCE_UPDATE, "bias"),
    "losses": (plan_pb2.VALUE_SOURCE_LOSSES, ""),
    "squared_error": (plan_pb2.VALUE_SOURCE_METRIC, "squared_error"),
    "scores": (plan_pb2.VALUE_SOURCE_SCORES, ""),
}


@dataclass(frozen=True, slots=True)
class HandMadePlan:
    """A plan with its blobs by digest."""

    manifest: plan_pb2.Manifest
    content: bytes
    blobs: dict[bytes, bytes]

    @property
    def digest(self) -> bytes:
        return digest_of(self.content)

    def reference(self, digest: bytes) -> BlobReference:
        return BlobReference(digest=digest, size=len(self.blobs[digest]))


def item_table() -> np.ndarray:
    """Returns the item table of the initial checkpoint, `[6, 2] float32`."""
    return (np.arange(12, dtype=np.float32).reshape(6, FACTORS) - 5) / 8


def make_plan(*, ridge: bool = False, initial: float = 0.5) -> HandMadePlan:
    """Returns the plan, with gradient-like steps or a ridge-like reconstruction."""
    blobs: dict[bytes, bytes] = {}

    def keep(content: bytes) -> BlobReference:
        blobs[digest_of(content)] = content
        return BlobReference(digest=digest_of(content), size=len(content))

    def graph(role: plan_pb2.GraphRole.ValueType, text: str) -> plan_pb2.Graph:
        model = onnx.parser.parse_model(HEADER + text)
        onnx.checker.check_model(model, full_check=True)

        def value(name: str) -> plan_pb2.GraphValue:
            source, reference = _sources[name]
            return plan_pb2.GraphValue(name=name, source=source, reference=reference)

        return plan_pb2.Graph(
            role=role,
            blob=keep(model.SerializeToString()),
            inputs=[value(each.name) for each in model.graph.input],
            outputs=[value(each.name) for each in model.graph.output],
        )

    checkpoint = write_safetensors({"items": item_table(), "bias": np.zeros(1, dtype=np.float32)})
    hyperparameters = {"rate": plan_pb2.Hyperparameter(default_value=0.25, minimum=0, maximum=1, per_step=True)}
    if ridge:
        hyperparameters["ridge"] = plan_pb2.Hyperparameter(default_value=2.0, minimum=1, maximum=9)
    schedule = plan_pb2.Schedule(batch_size=2, epochs=2)
    manifest = plan_pb2.Manifest(
        format=1,
        name="hand-made",
        parameters=[
            plan_pb2.Parameter(
                name="items",
                placement=plan_pb2.PLACEMENT_GLOBAL,
                dtype=common_pb2.DTYPE_FLOAT32,
                shape=[6, FACTORS],
                vocabulary="items",
            ),
            plan_pb2.Parameter(
                name="bias", placement=plan_pb2.PLACEMENT_GLOBAL, dtype=common_pb2.DTYPE_FLOAT32, shape=[1]
            ),
            plan_pb2.Parameter(
                name="user",
                placement=plan_pb2.PLACEMENT_LOCAL,
                dtype=common_pb2.DTYPE_FLOAT32,
                shape=[FACTORS],
                initial=plan_pb2.Initial(constant=initial),
            ),
        ],
        fields=[
            plan_pb2.Field(
                name="item", role=plan_pb2.FIELD_ROLE_INPUT, dtype=common_pb2.DTYPE_INT64, vocabulary="items"
            ),
            plan_pb2.Field(
                name="rating",
                role=plan_pb2.FIELD_ROLE_TARGET,
                dtype=common_pb2.DTYPE_FLOAT32,
                minimum=0.5,
                maximum=5,
                limited=True,
            ),
        ],
        graphs=[
            graph(plan_pb2.GRAPH_ROLE_TOUCH, TOUCH),
            graph(plan_pb2.GRAPH_ROLE_RECONSTRUCT, RIDGE if ridge else RECONSTRUCT),
            graph(plan_pb2.GRAPH_ROLE_UPDATE, UPDATE),
            graph(plan_pb2.GRAPH_ROLE_EVALUATE, EVALUATE),
            graph(plan_pb2.GRAPH_ROLE_PREDICT, PREDICT),
        ],
        layout=plan_pb2.Layout(
            segments=[
                plan_pb2.Segment(parameter="items", all_rows=True, bound=8, width=FACTORS),
                plan_pb2.Segment(parameter="bias", all_rows=True, bound=64, width=1),
            ]
        ),
        hyperparameters=hyperparameters,
        reconstruct_schedule=None if ridge else schedule,
        update_schedule=schedule,
        metrics=[plan_pb2.MetricSum(name="squared_error", bound=100)],
        initial_checkpoint=keep(checkpoint),
        vocabularies={"items": keep(write_vocabulary("items", 1, KEYS, [key.title() for key in KEYS]))},
    )
    content = manifests.write_manifest(manifest)
    keep(content)
    return HandMadePlan(manifest, content, blobs)


def make_assignment(plan: HandMadePlan, **changes: object) -> Assignment:
    """Returns an assignment of the plan, with fields changed."""
    assignment = Assignment(
        session=bytes(range(16)),
        round=RoundKey(task="films", round=3, attempt=1),
        kind=coordinator_pb2.SESSION_KIND_TRAIN,
        plan=plan.reference(plan.digest),
        signature=manifests.sign_plan(plan.digest, PUBLISHER),
        checkpoint=plan.manifest.initial_checkpoint,
        aggregator="aggregator:1",
        blobs="blobs:1",
        secure_sum=task_pb2.SecureSum(
            protocol=task_pb2.SUM_PROTOCOL_TRUSTED,
            ring_bits=32,
            maximum_reports=100,
            maximum_weight=20,
            minimum_group=5,
        ),
        work=task_pb2.LocalWork(split=task_pb2.SPLIT_RULE_ALTERNATE_BATCHES, minimum_examples=2),
        layout=plan.manifest.layout,
        report_within_milliseconds=60_000,
        round_token=b"a round token",
    )
    for name, value in changes.items():
        if isinstance(value, int | float | bytes | str):
            setattr(assignment, name, value)
        else:
            getattr(assignment, name).CopyFrom(value)
    return assignment


RECOMMENDER = """recommender (int64[N] item, float[N] rating, int64[M] excluded, int64[1] k)
  => (int64[F] rows, float[F] scores, float[2] "local/user") {
  one = Constant <value = int64[1] {1}> ()
  zero = Constant <value = int64[1] {0}> ()
  start = Constant <value = float[2] {0.5, 0.5}> ()
  amount = Add(rating, rating)
  vectors = Gather(items, item)
  tall = Unsqueeze(amount, one)
  parts = Mul(tall, vectors)
  total = ReduceSum <keepdims = 0> (parts, zero)
  quarter = Constant <value = float {0.25}> ()
  moved = Mul(total, quarter)
  user = Add(start, moved)
  "local/user" = Identity(user)
  products = Mul(items, user)
  predicted = ReduceSum <keepdims = 0> (products, one)
  lowest = Constant <value = float {-inf}> ()
  width = Shape(excluded)
  marks = Expand(lowest, width)
  allowed = ScatterElements <axis = 0> (predicted, excluded, marks)
  all = Shape(predicted)
  gone = Shape(excluded)
  left = Sub(all, gone)
  count = Min(k, left)
  scores, rows = TopK <axis = 0> (allowed, count)
}"""


def make_recommender(plan: HandMadePlan) -> tuple[bytes, bytes]:
    """Returns a recommender file of the plan and the bytes of its items."""
    items = plan.blobs[plan.manifest.vocabularies["items"].digest]
    text = RECOMMENDER.replace('"local/user"', "local_user").replace("-inf", "-3.4e38")
    model = onnx.parser.parse_model(HEADER + text)
    for node in model.graph.node:
        node.output[:] = ["local/user" if name == "local_user" else name for name in node.output]
    model.graph.output[2].name = "local/user"
    model.graph.initializer.append(onnx.numpy_helper.from_array(item_table(), "items"))
    fields = [
        {"name": "item", "vocabulary": "items", "minimum": None, "maximum": None, "role": "input"},
        {"name": "rating", "vocabulary": "", "minimum": 0.5, "maximum": 5.0, "role": "target"},
    ]
    onnx.helper.set_model_props(
        model,
        {
            "fedrecon.format": "1",
            "fedrecon.task": "films",
            "fedrecon.round": "3",
            "fedrecon.plan": plan.digest.hex(),
            "fedrecon.checkpoint": plan.manifest.initial_checkpoint.digest.hex(),
            "fedrecon.fields": json.dumps(fields),
            "fedrecon.vocabulary": digest_of(items).hex(),
        },
    )
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(), items
