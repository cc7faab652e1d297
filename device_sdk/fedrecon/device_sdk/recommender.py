"""Recommends on the device with one ONNX file: reconstruction and ranking in one graph, no network, no training.

The file takes one input for each field that reconstruction reads, named like it (row numbers int64 for a field with a
vocabulary, float32 for the others), `excluded` (rows never to be recommended) and `k`; it gives `rows`, `scores` and
`local/NAME` for every local parameter. Its metadata name the format, the fields and the vocabulary; the vocabulary
lies beside it as `NAME.items`. A user without examples is served too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrecon.device_sdk.columns import FieldRule, map_examples
from fedrecon.device_sdk.errors import UnknownItemsError, UnusablePlanError
from fedrecon.device_sdk.graphs import RunnableGraph, runnable_graph
from fedrecon.device_sdk.local_parameters import LocalParameters
from fedrecon.wire.digests import DigestMismatchError, digest_of, verify_digest
from fedrecon.wire.vocabularies import Items, MalformedVocabularyError, read_vocabulary

FORMATS = ("1",)
EXCLUDED, COUNT, ROWS, SCORES, LOCAL = "excluded", "k", "rows", "scores", "local/"
ITEMS_SUFFIX = ".items"
BUNDLE_SUFFIX = ".bundle.json"
_ONE_EXPORT = "take all files from one export"
SHOWN_KEYS = 5


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One recommended item.

    Attributes:
        key: the app's own key.
        title: its title, or the key if the vocabulary has no titles.
        score: what the model predicts for it.
    """

    key: str
    title: str
    score: float


class Recommender:
    """A recommender file, ready for use.

    Args:
        file: path of the ONNX file, or its bytes.
        items: bytes of its vocabulary; of a path, the file beside it with the suffix `.items` if not given.

    Attributes:
        task: name of the task that made it.
        round: the round of its checkpoint.
        digest: digest of the file.
        items: its vocabulary.

    Raises:
        UnusablePlanError: file and vocabulary cannot be read here, do not belong together, or are not what the manifest
            beside them says.

    Example:
        >>> recommender = Recommender("movies.onnx")  # doctest: +SKIP
        >>> recommender.recommend({"item": ["1193", "661"], "rating": [5.0, 3.0]}, 10)  # doctest: +SKIP
    """

    def __init__(self, file: str | Path | bytes, items: bytes | None = None) -> None:
        content, name = (file, "recommender") if isinstance(file, bytes) else (Path(file).read_bytes(), str(file))
        if items is None:
            if isinstance(file, bytes):
                raise ValueError("a recommender given as bytes needs its items as bytes, too")
            items = Path(file).with_suffix(ITEMS_SUFFIX).read_bytes()
            _refuse_damaged(Path(file).with_suffix(BUNDLE_SUFFIX), {"recommender": content, "items": items})
        self.digest = digest_of(content)
        self._graph = runnable_graph(content, name, self.digest)
        metadata = self._graph.metadata
        if metadata.get("fedrecon.format") not in FORMATS:
            raise UnusablePlanError(
                f"{name} has recommender format {metadata.get('fedrecon.format')!r}; this version runs {list(FORMATS)}"
            )
        self.task = metadata.get("fedrecon.task", "")
        self.round = int(metadata.get("fedrecon.round") or 0)
        self.items = _read_items(items, metadata.get("fedrecon.vocabulary", ""), name)
        self._rules = _read_rules(self._graph, metadata.get("fedrecon.fields", "[]"), name)

    def recommend(
        self,
        columns: Mapping[str, Any],
        k: int,
        *,
        exclude: Iterable[str] = (),
        exclude_seen: bool = True,
    ) -> list[Recommendation]:
        """Returns the best items for a user, best first.

        Args:
            columns: the user's examples by field, oldest first, items by their keys; empty for a new user.
            k: how many, at least 1; fewer come where fewer are left.
            exclude: keys that are not wanted.
            exclude_seen: whether the items of the examples are left out, too.

        Raises:
            UnusablePlanError: the examples lack a field that the model reads.
        """
        if k < 1:
            raise ValueError(f"k is {k}; ask for at least one recommendation")
        excluded = [*exclude, *(_keys(self._rules, columns) if exclude_seen else ())]
        rows = self.items.rows_of(excluded)
        outputs = self._run(columns, k, np.unique(rows[rows >= 0]))
        return [
            Recommendation(self.items.keys[row], self.items.title_of(row), float(score))
            for row, score in zip(outputs[ROWS].tolist(), outputs[SCORES], strict=True)
        ]

    def predict(self, columns: Mapping[str, Any], candidates: Mapping[str, Sequence[Any]]) -> NDArray[np.float32]:
        """Returns what the model predicts for a user and each candidate.

        Args:
            columns: the user's examples by field, as for `recommend`.
            candidates: the field of the items, with their keys.

        Raises:
            UnknownItemsError: a candidate is no item of the model, or one that was withdrawn.
            UnusablePlanError: the candidates are not those of one field of items.
        """
        fields = {rule.name for rule in self._rules if rule.vocabulary}
        if len(candidates) != 1 or not fields.issuperset(candidates):
            raise UnusablePlanError(
                f"the candidates have the fields {sorted(candidates)}; this file scores one of {sorted(fields)}",
                'give the keys of the items by their field: {"item": [...]}',
            )
        (keys,) = ([str(key) for key in values] for values in candidates.values())
        rows = self.items.rows_of(keys)
        outputs = self._run(columns, len(self.items.keys), np.zeros(0, dtype=np.int64))
        scored = dict(zip(outputs[ROWS].tolist(), outputs[SCORES].tolist(), strict=True))
        unknown = [key for key, row in zip(keys, rows.tolist(), strict=True) if row not in scored]
        if unknown:
            raise unknown_items(tuple(dict.fromkeys(unknown)))
        return np.array([scored[row] for row in rows.tolist()], dtype=np.float32)

    def reconstruct(self, columns: Mapping[str, Any]) -> LocalParameters:
        """Returns the user's local parameters; they stay in this process.

        Args:
            columns: the user's examples by field, as for `recommend`.
        """
        outputs = self._run(columns, 1, np.zeros(0, dtype=np.int64))
        names = [name for name in outputs if name.startswith(LOCAL)]
        return LocalParameters({name.removeprefix(LOCAL): outputs[name] for name in names})

    def unknown_keys(self, columns: Mapping[str, Any]) -> tuple[str, ...]:
        """Returns the items of the examples that the model does not know: they are left out."""
        keys = list(dict.fromkeys(_keys(self._rules, columns)))
        rows = self.items.rows_of(keys)
        return tuple(key for key, row in zip(keys, rows, strict=True) if row < 0)

    def _run(self, columns: Mapping[str, Any], k: int, excluded: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        arrays = {name: np.asarray(column) for name, column in columns.items()}
        vocabularies = {rule.vocabulary: self.items for rule in self._rules if rule.vocabulary}
        rows = dict.fromkeys(vocabularies, len(self.items.keys))
        mapped = map_examples(self._rules, arrays, vocabularies, rows)
        return self._graph.run({**mapped.columns, EXCLUDED: excluded, COUNT: np.array([k], dtype=np.int64)})


def unknown_items(keys: tuple[str, ...]) -> UnknownItemsError:
    """Returns the error that names items which a model does not know."""
    shown = ", ".join(map(repr, keys[:SHOWN_KEYS])) + (", ..." if len(keys) > SHOWN_KEYS else "")
    return UnknownItemsError(f"the model does not know {len(keys)} of the candidates: {shown}", keys=keys)


def _keys(rules: Iterable[FieldRule], columns: Mapping[str, Any]) -> list[str]:
    """Returns the keys of items among the examples."""
    return [str(key) for rule in rules if rule.vocabulary for key in columns.get(rule.name, ())]


def _refuse_damaged(manifest: Path, files: Mapping[str, bytes]) -> None:
    """Refuses files that differ from the digests of the manifest beside them; there need not be one."""
    try:
        told = json.loads(manifest.read_bytes())
        digests = {name: told[name]["sha256"] for name in files}
    except FileNotFoundError:
        return
    except (ValueError, TypeError, KeyError) as error:
        raise UnusablePlanError(f"{manifest} is no manifest of a recommender", _ONE_EXPORT) from error
    for name, content in files.items():
        if digest_of(content).hex() != digests[name]:
            raise UnusablePlanError(
                f"the {name} and {manifest} do not belong together, or one of them is damaged", _ONE_EXPORT
            )


def _read_items(content: bytes, digest: str, name: str) -> Items:
    try:
        if digest:
            verify_digest(content, bytes.fromhex(digest), f"items of {name}")
        return read_vocabulary(content)
    except (DigestMismatchError, MalformedVocabularyError) as error:
        raise UnusablePlanError(
            f"{name} and its items do not belong together: {error}", "take both from the same export"
        ) from error


def _read_rules(graph: RunnableGraph, text: str, name: str) -> list[FieldRule]:
    """Returns the fields that the graph reads, from its metadata."""
    rules = []
    try:
        for field in json.loads(text):
            if field["name"] not in graph.input_types:
                continue
            minimum, maximum = field.get("minimum"), field.get("maximum")
            rules.append(
                FieldRule(
                    name=field["name"],
                    dtype=graph.input_types[field["name"]],
                    shape=graph.input_shapes[field["name"]][1:],
                    vocabulary=field.get("vocabulary") or "",
                    limits=None if minimum is None or maximum is None else (float(minimum), float(maximum)),
                )
            )
    except (KeyError, TypeError, ValueError) as error:
        raise UnusablePlanError(f"{name}: its list of fields cannot be read: {text!r}") from error
    return rules
