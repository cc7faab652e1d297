"""The personal model: made once, kept sealed or not at all, served offline; history, opting out, forgetting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from fedrecon.device_sdk import Device, Outcome
from fedrecon.device_sdk.errors import NoModelError, UnknownItemsError
from fedrecon.device_sdk.sealing import open_sealed, seal
from fedrecon.device_sdk.testing import FakeServices, FakeTransport, toy_plan
from fedrecon.wire.digests import digest_of
from fedrecon.wire.tensors import read_safetensors, write_safetensors
from support import device_bundle
from support.toy_devices import RATINGS, toy_device, toy_store, toy_transport

KEY = bytes(range(32))


def user_of(ratings: dict[str, float]) -> np.ndarray:
    """Returns what the toy plan reconstructs: its steps are sums, gone through twice."""
    table = device_bundle.item_table()
    rows = {key: row for row, key in enumerate(device_bundle.KEYS)}
    return 0.5 + 2 * sum((0.25 * rating * table[rows[key]] for key, rating in ratings.items()), np.zeros(2))


class Counting:
    """Counts how often a graph of some role runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from fedrecon.device_sdk import graphs

        self.names: list[str] = []
        run = graphs.RunnableGraph.run

        def counted(graph: Any, feeds: Any) -> Any:
            self.names.append(graph.name.rpartition("/")[2])
            return run(graph, feeds)

        monkeypatch.setattr(graphs.RunnableGraph, "run", counted)


def taken_part(home: Path | None = None, **changes: Any) -> tuple[Device, FakeTransport]:
    transport = toy_transport()
    device = toy_device(transport, home, **changes)
    assert device.participate().outcome is Outcome.UPLOADED
    return device, transport


def test_local_parameters_are_made_once_and_again_when_examples_change(monkeypatch: pytest.MonkeyPatch) -> None:
    store = toy_store()
    device, _ = taken_part(examples=store)
    counting = Counting(monkeypatch)
    np.testing.assert_allclose(device.reconstruct()["user"], user_of(RATINGS), rtol=1e-6)
    device.reconstruct()
    device.recommend(2)
    device.predict({"item": ["film-5"]})
    assert counting.names.count("reconstruct") == 1
    store.add(item="film-5", rating=4.0)
    np.testing.assert_allclose(device.reconstruct()["user"], user_of({**RATINGS, "film-5": 4.0}), rtol=1e-6)
    assert counting.names.count("reconstruct") == 2


def new_checkpoint(services: FakeServices, factor: float) -> None:
    """Lets services assign a checkpoint whose items are larger by a factor."""
    first = read_safetensors(services.blobs[services.plan.manifest.initial_checkpoint.digest])
    content = write_safetensors({**first, "items": first["items"] * np.float32(factor)})
    services.blobs[digest_of(content)] = content

    def change(assignment: Any) -> None:
        assignment.checkpoint.digest, assignment.checkpoint.size = digest_of(content), len(content)

    services.change = change


def test_local_parameters_are_made_again_when_the_checkpoint_is_another(tmp_path: Path) -> None:
    device, transport = taken_part(tmp_path, secure_sum="allowed")
    transport.services = FakeServices(secure_sum=False)
    before = device.reconstruct()["user"]
    new_checkpoint(transport.services, 2.0)
    assert device.participate().outcome is Outcome.UPLOADED
    np.testing.assert_allclose(device.reconstruct()["user"] - 0.5, 2 * (before - 0.5), rtol=1e-5)


def test_predictions_are_those_of_the_plan_and_unknown_items_are_named() -> None:
    device, _ = taken_part()
    scores = device.predict({"item": ["film-5", "film-0"]})
    np.testing.assert_allclose(scores, device_bundle.item_table()[[5, 0]] @ user_of(RATINGS), rtol=1e-5)
    with pytest.raises(UnknownItemsError, match="does not know 2 of the candidates: 'film-9', 'film-8'") as raised:
        device.predict({"item": ["film-9", "film-0", "film-8"]})
    assert raised.value.keys == ("film-9", "film-8")
    assert raised.value.advice
    assert device.predict({"item": ["film-0"]}).shape == (1,)


def test_a_user_without_examples_gets_the_default() -> None:
    store = toy_store()
    device, _ = taken_part(examples=store)
    store.clear()
    np.testing.assert_array_equal(device.reconstruct()["user"], [0.5, 0.5])
    assert len(device.recommend(3)) == 3


def test_a_device_serves_from_its_last_model_without_a_network(tmp_path: Path) -> None:
    device, _ = taken_part(tmp_path)
    expected = device.recommend(3)
    offline = toy_transport()
    offline.is_reachable = False
    assert toy_device(offline, tmp_path).recommend(3) == expected
    assert offline.services.calls == []


def test_a_damaged_model_is_fetched_again_or_the_one_before_serves(tmp_path: Path) -> None:
    device, transport = taken_part(tmp_path, secure_sum="allowed")
    expected = device.recommend(3)
    transport.services = FakeServices(secure_sum=False)
    new_checkpoint(transport.services, 2.0)
    assert device.participate().outcome is Outcome.UPLOADED
    newest = device._memory.assignment
    assert newest is not None
    (tmp_path / "blobs" / newest.checkpoint.digest.hex()).write_bytes(b"damaged")
    offline = toy_transport()
    offline.is_reachable = False
    assert toy_device(offline, tmp_path).recommend(3) == expected
    again = toy_device(FakeTransport(transport.services), tmp_path)
    assert [each.score for each in again.recommend(3)] != [each.score for each in expected]


def test_without_a_model_the_advice_says_how_to_get_one() -> None:
    with pytest.raises(NoModelError, match="take part once"):
        toy_device(toy_transport()).reconstruct()


def test_local_parameters_are_stored_sealed_and_never_without_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = taken_part(tmp_path / "plain")
    plain.reconstruct()
    device, transport = taken_part(tmp_path / "sealed", locals_key=KEY)
    user = device.reconstruct()["user"]
    names = {path.name: path for path in tmp_path.rglob("*") if path.is_file()}
    assert "locals.sealed" in names
    assert [path.name for path in (tmp_path / "plain").iterdir() if "locals" in path.name] == []
    assert not any(user.tobytes() in path.read_bytes() for path in names.values())
    counting = Counting(monkeypatch)
    again = toy_device(FakeTransport(transport.services), tmp_path / "sealed", locals_key=KEY)
    np.testing.assert_array_equal(again.reconstruct()["user"], user)
    assert counting.names == []
    other = toy_device(FakeTransport(transport.services), tmp_path / "sealed", locals_key=bytes(32))
    np.testing.assert_array_equal(other.reconstruct()["user"], user)
    assert "reconstruct" in counting.names


def test_sealed_parameters_open_with_their_key_and_for_what_they_were_made_of_only() -> None:
    device, _ = taken_part()
    local = device._model.reconstruct()
    sealed = seal(KEY, local, b"made of this")
    opened = open_sealed(KEY, sealed, b"made of this")
    assert opened is not None
    np.testing.assert_array_equal(opened["user"], local["user"])
    assert open_sealed(bytes(32), sealed, b"made of this") is None
    assert open_sealed(KEY, sealed, b"made of that") is None
    assert open_sealed(KEY, sealed[:-1], b"made of this") is None
    assert open_sealed(KEY, b"", b"made of this") is None


def test_a_key_of_another_length_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="locals_key has 5 bytes"):
        toy_device(toy_transport(), locals_key=b"short")


def test_the_history_tells_what_left_when_and_to_whom_also_to_the_next_process(tmp_path: Path) -> None:
    device, transport = taken_part(tmp_path)
    transport.is_reachable = False
    device.participate()
    first, second = toy_device(toy_transport(), tmp_path).history()
    assert (first.outcome, second.outcome) == (Outcome.UPLOADED, Outcome.UNREACHABLE)
    assert first.receipt.departures == tuple(first.receipt)
    assert {each.message for each in first.receipt} >= {"CheckIn", "Upload", "FinishSession"}
    assert {each.recipient for each in first.receipt} >= {"coordinator:1", "aggregator:1"}
    assert 0 < first.ended <= second.ended
    assert first.unknown_keys == ()
    line = json.loads((tmp_path / "history.jsonl").read_text().splitlines()[0])
    assert "film" not in json.dumps(line)


def test_the_history_keeps_the_newest_and_survives_damage(tmp_path: Path) -> None:
    transport = toy_transport()
    transport.is_reachable = False
    device = toy_device(transport, tmp_path)
    with mock.patch("fedrecon.device_sdk.history.KEPT_PARTICIPATIONS", 3):
        for _ in range(5):
            device.participate()
    assert len(device.history()) == 3
    path = tmp_path / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert len(device.history()) == 2
    device.participate()
    assert len(device.history()) == 3


def test_a_participation_of_which_nothing_left_is_no_history() -> None:
    store = toy_store()
    store.clear()
    device = toy_device(toy_transport(), examples=store)
    assert device.participate().outcome is Outcome.TOO_FEW_EXAMPLES
    assert device.history() == ()


def test_who_opted_out_takes_no_part_until_opting_in_also_after_forgetting(tmp_path: Path) -> None:
    device, transport = taken_part(tmp_path)
    device.opt_out()
    calls = len(transport.services.calls)
    assert device.participate().reason == "OPTED_OUT"
    assert toy_device(transport, tmp_path).participate().outcome is Outcome.NOT_NOW
    assert len(device.recommend(2, exclude_seen=False)) == 2
    device.forget()
    assert device.is_opted_out
    assert device.participate().reason == "OPTED_OUT"
    assert len(transport.services.calls) == calls
    device.opt_in()
    device._participant.examples = toy_store()
    assert device.participate().outcome is Outcome.UPLOADED


def test_a_forgetful_device_keeps_nothing_of_its_user(tmp_path: Path) -> None:
    store = toy_store(tmp_path / "examples.db")
    device, _ = taken_part(tmp_path, locals_key=KEY, examples=store)
    device.reconstruct()
    assert device.forget()
    left = [path.name for path in sorted(tmp_path.rglob("*")) if path.is_file() and path.stat().st_size]
    assert left == ["examples.db"]
    assert b"film" not in (tmp_path / "examples.db").read_bytes()
    assert (store.count(), device.history(), len(device.receipt())) == (0, (), 0)
    with pytest.raises(NoModelError):
        device.reconstruct()
    assert toy_plan().publisher in str(device._participant.floors.trusted_plans[0].hex())
