"""What inference answers over HTTP, as an OpenAPI 3.1 document: made from the contract, so that it stays true."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from fedrecon.v1.inference_pb2 import FindSimilarResponse, RecommendRequest, RecommendResponse

_HEXADECIMAL = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_SCALARS: dict[int, dict[str, Any]] = {
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_DOUBLE: {"type": "number"},
    FieldDescriptor.TYPE_FLOAT: {"type": "number"},
    FieldDescriptor.TYPE_UINT32: {"type": "integer", "minimum": 0},
    FieldDescriptor.TYPE_UINT64: {"type": "string", "pattern": "^[0-9]+$"},
    FieldDescriptor.TYPE_BYTES: _HEXADECIMAL,
}
_FILE = {
    "type": "object",
    "required": ["digest", "size", "path"],
    "properties": {"digest": _HEXADECIMAL, "size": {"type": "integer"}, "path": {"type": "string"}},
}
_VERSION = {"type": "integer", "description": "0: the newest committed checkpoint"}
_TASKS = {
    "type": "object",
    "required": ["tasks"],
    "properties": {
        "tasks": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["task", "round", "version"],
                "properties": {"task": {"type": "string"}, "round": {"type": "integer"}, "version": _VERSION},
            },
        }
    },
}
_TAKEN_FIELD = {
    "type": "object",
    "required": ["name", "vocabulary", "minimum", "maximum", "role"],
    "properties": {
        "name": {"type": "string"},
        "vocabulary": {"type": "string", "description": "whose keys it holds; empty: numbers"},
        "minimum": {"type": ["number", "null"]},
        "maximum": {"type": ["number", "null"]},
        "role": {"enum": ["input", "target"]},
    },
}
_LIVE = {
    "type": "object",
    "required": ["task", "round", "version", "fields", "recommender", "items", "checkpoint_digest", "plan_digest"],
    "properties": {
        "task": {"type": "string"},
        "round": {"type": "integer"},
        "version": _VERSION,
        "canary": {
            "type": "object",
            "required": ["version", "round", "places"],
            "properties": {
                "version": _VERSION,
                "round": {"type": "integer"},
                "places": {"type": "integer", "description": "of 10,000 places of users, those below get it"},
            },
        },
        "fields": {"type": "array", "items": _TAKEN_FIELD},
        "recommender": _FILE,
        "items": _FILE,
        "checkpoint_digest": _HEXADECIMAL,
        "plan_digest": _HEXADECIMAL,
    },
}
_REFUSAL = {
    "type": "object",
    "required": ["reason", "message", "advice"],
    "properties": {
        "reason": {"type": "string", "description": "stable word for programs"},
        "message": {"type": "string", "description": "what was wrong"},
        "advice": {"type": "string", "description": "what to do about it"},
        "retry_milliseconds": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
    },
}


def describe_api() -> dict[str, Any]:
    """Returns the document."""
    task, key = _parameter("task", "path"), _parameter("key", "path")
    digest = {**_parameter("digest", "path"), "schema": _HEXADECIMAL}
    count = {**_parameter("count", "query"), "required": False, "schema": {"type": "integer", "minimum": 1}}
    held = {**_parameter("version", "query"), "required": False, "schema": {"type": "integer", "minimum": 0}}
    place = {**_parameter("place", "query"), "required": False, "schema": {"type": "integer", "maximum": 9999}}
    chosen = [task, place, held]
    schemas: dict[str, Any] = {"Card": {"type": "object"}, "Live": _LIVE, "Refusal": _REFUSAL, "Tasks": _TASKS}
    for message in (RecommendRequest, RecommendResponse, FindSimilarResponse):
        _note(message.DESCRIPTOR, schemas)
    del schemas["RecommendRequest"]["properties"]["task"]  # it is in the path
    asked = {"required": True, "content": _json("RecommendRequest")}
    return {
        "openapi": "3.1.0",
        "info": {"title": "fedrecon inference", "version": version("fedrecon")},
        "paths": {
            "/v1/tasks": {"get": _operation("Tasks with something live", [], _json("Tasks"))},
            "/v1/tasks/{task}": {"get": _operation("What is live", chosen, _json("Live"))},
            "/v1/tasks/{task}/recommender.onnx": {"get": _operation("The live ONNX file", chosen, _binary())},
            "/v1/tasks/{task}/recommender.items": {"get": _operation("Its vocabulary", chosen, _binary())},
            "/v1/tasks/{task}/card.json": {"get": _operation("Its model card", chosen, _json("Card"))},
            "/v1/tasks/{task}/card.md": {"get": _operation("The same for people", chosen, _markdown())},
            "/v1/blobs/{digest}": {"get": _operation("A live file by its digest", [digest], _binary())},
            "/v1/tasks/{task}/recommend": {
                "post": {
                    **_operation(
                        "Recommend to a user whose examples come along; nothing of them is kept",
                        [task],
                        _json("RecommendResponse"),
                    ),
                    "requestBody": asked,
                }
            },
            "/v1/tasks/{task}/similar/{key}": {
                "get": _operation("Items that are like one", [*chosen, key, count], _json("FindSimilarResponse"))
            },
        },
        "components": {"schemas": schemas},
    }


def _operation(summary: str, parameters: list[dict[str, Any]], content: dict[str, Any]) -> dict[str, Any]:
    return {
        "summary": summary,
        "parameters": parameters,
        "responses": {
            "200": {"description": "answered", "content": content},
            "default": {"description": "refused", "content": _json("Refusal")},
        },
    }


def _parameter(name: str, place: str) -> dict[str, Any]:
    return {"name": name, "in": place, "required": True, "schema": {"type": "string"}}


def _json(schema: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _markdown() -> dict[str, Any]:
    return {"text/markdown": {}}


def _binary() -> dict[str, Any]:
    return {"application/octet-stream": {}}


def _note(message: Descriptor, schemas: dict[str, Any]) -> None:
    """Notes a message's schema, and those of the messages in it."""
    if message.name in schemas:
        return
    properties: dict[str, Any] = {}
    schemas[message.name] = {"type": "object", "additionalProperties": False, "properties": properties}
    for field in message.fields:
        if field.message_type is not None:
            _note(field.message_type, schemas)
            schema: dict[str, Any] = {"$ref": f"#/components/schemas/{field.message_type.name}"}
        else:
            schema = _SCALARS[field.type]
        properties[field.name] = {"type": "array", "items": schema} if field.is_repeated else schema
