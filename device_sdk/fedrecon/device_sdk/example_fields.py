"""What an example holds, read from a plan's manifest: so that app and modeller cannot mean different things."""

from __future__ import annotations

from fedrecon.device_sdk.columns import rule_of
from fedrecon.device_sdk.errors import UnusablePlanError
from fedrecon.wire import manifests

FieldKind = type[str] | type[float] | tuple[float, float]


def fields_of_plan(manifest: bytes) -> dict[str, FieldKind]:
    """Returns the fields of a plan: keys for those with a vocabulary, numbers within their limits for the others.

    Args:
        manifest: content of the plan's `manifest.json`.

    Raises:
        UnusablePlanError: it cannot be read, or has an element type that is not known.
    """
    try:
        fields = manifests.read_manifest(manifest).fields
    except manifests.MalformedPlanError as error:
        raise UnusablePlanError(str(error)) from error
    return {rule.name: str if rule.vocabulary else rule.limits or float for rule in map(rule_of, fields)}
