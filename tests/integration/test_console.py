"""The console over HTTP, in front of a real coordinator: who may see and change what, and what is shown."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fedrecon.coordinator.round_state import Phase
from fedrecon.ops.clock import SystemClock
from fedrecon.ops.console.routes import FOLDER
from fedrecon.ops.journal.memory import MemoryJournal
from support.authority import make_authority
from support.console_house import SECONDS, ConsoleHouse, console_house, console_of
from support.console_rounds import Past
from support.coordinating import TASK, make_spec, until_true

ROUNDS = 24
LARGEST_PAGE_BYTES = 200_000
PAGES = ("/", "/sign-in", "/services", "/audit", f"/tasks/{TASK}", f"/tasks/{TASK}/rounds/7")
LOOKS = (
    "/api/tasks",
    f"/api/tasks/{TASK}",
    f"/api/tasks/{TASK}/rounds",
    f"/api/tasks/{TASK}/rounds/7",
    f"/api/tasks/{TASK}/history",
    f"/api/tasks/{TASK}/checkpoints",
    f"/api/tasks/{TASK}/recommenders",
    f"/api/tasks/{TASK}/events",
    "/api/services",
    "/api/audit",
)
CHANGES = ("pause", "resume", "cancel", "roll-back")


@pytest.fixture
async def empty(tmp_path: Path) -> AsyncIterator[ConsoleHouse]:
    async with console_house(tmp_path, MemoryJournal()) as made:
        yield made


@pytest.fixture
async def lived(empty: ConsoleHouse) -> ConsoleHouse:
    """A house whose task has a past, and waits for devices."""
    spec = make_spec(empty.built.plan)
    now = SystemClock().now_milliseconds()
    await Past(empty.built.journal, empty.built.blobs, TASK, now - ROUNDS * 8_000).write(spec, ROUNDS)
    await empty.built.coordinators[0].until_ready()
    return empty


async def test_whoever_is_not_signed_in_gets_the_page_and_nothing_else(empty: ConsoleHouse) -> None:
    stranger = empty.browser()
    for page in PAGES:
        answer = await stranger.ask(page)
        assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "default-src 'none'; script-src 'self';" in answer.headers["content-security-policy"]
    assert (await stranger.ask("/api/me")).json == {}
    for path in LOOKS:
        assert (await stranger.ask(path)).json["reason"] == "NOT_SIGNED_IN", path
    for verb in CHANGES:
        assert (await stranger.change(f"/api/tasks/{TASK}/{verb}")).json["reason"] == "NOT_SIGNED_IN", verb
    assert (await stranger.enter("nobody that is known")).json["reason"] == "UNKNOWN_OPERATOR"
    assert (await stranger.change("/api/sign-in", {"token": "", "code": ""})).status == 400


async def test_every_file_of_the_page_is_given_and_nothing_beside_it(empty: ConsoleHouse) -> None:
    stranger = empty.browser()
    files = await asyncio.to_thread(lambda: sorted(path.name for path in FOLDER.iterdir()))
    sizes = [len((await stranger.ask(f"/console/{name}")).body) for name in files]
    assert min(sizes) > 0
    assert sum(sizes) < LARGEST_PAGE_BYTES, "what a browser loads once"
    page = (await stranger.ask("/")).body.decode()
    assert "http://" not in page
    assert "https://" not in page
    for wrong in ("/console/../routes.py", "/console/%2e%2e/routes.py", "/console/nothing.js"):
        assert (await stranger.ask(wrong)).status == 404, wrong


async def test_a_session_is_a_cookie_that_scripts_cannot_read_and_ends_when_told(empty: ConsoleHouse) -> None:
    browser = empty.browser()
    entered = await browser.enter("vera")
    assert entered.json["name"] == "vera"
    attributes = {part.strip().lower() for part in entered.headers["set-cookie"].split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/"} <= attributes
    assert (await browser.ask("/api/me")).json["role"] == "viewer"
    assert (await browser.change("/api/sign-out")).status == 200
    assert (await browser.ask("/api/me")).json == {}
    assert (await browser.ask("/api/tasks")).json["reason"] == "NOT_SIGNED_IN"


async def test_a_link_signs_in_once(empty: ConsoleHouse) -> None:
    code = empty.link("root@here").partition("#")[2]
    browser = empty.browser()
    assert (await browser.enter(code=code)).json["name"] == "root@here"
    assert (await browser.ask("/api/me")).json["role"] == "service"
    assert (await empty.browser().enter(code=code)).json["reason"] == "BAD_CODE"
    assert (await empty.browser().enter(code=code[:-4] + "AAAA")).json["reason"] == "BAD_CODE"


async def test_another_site_can_neither_change_anything_nor_pose_as_the_console(lived: ConsoleHouse) -> None:
    browser = await lived.entered("ada")
    forged = await browser.change(f"/api/tasks/{TASK}/pause", **{"x-fedrecon-proof": "guessed"})
    assert (forged.status, forged.json["reason"]) == (403, "NOT_OUR_PAGE")
    form = await browser.change("/api/sign-in", {"token": "x"}, **{"content-type": "text/plain"})
    assert form.status == 400
    rebound = await browser.ask("/api/tasks", host="evil.example:80")
    assert (rebound.status, rebound.json["reason"]) == (403, "WRONG_HOST")
    assert (await browser.ask(f"/api/tasks/{TASK}")).json["state"] == "running"


async def test_a_console_for_other_machines_speaks_tls_and_its_cookie_travels_no_other_way(
    empty: ConsoleHouse, tmp_path: Path
) -> None:
    authority = make_authority("fedrecon test authority")
    trusted = authority.write(tmp_path / "authority.pem")
    certificate, key = authority.issue(tmp_path, "services")
    shown = {"host": "0.0.0.0", "tls_certificate": certificate, "tls_key": key}  # noqa: S104 - what is tested
    async with console_of(tmp_path / "open", empty.target, **shown) as (address, _):

        def sign_in() -> http.client.HTTPResponse:
            port = int(address.rpartition(":")[2])
            encryption = ssl.create_default_context(cafile=str(trusted))
            connection = http.client.HTTPSConnection("127.0.0.1", port, context=encryption, timeout=SECONDS)
            body, kind = json.dumps({"token": "token of vera"}), {"content-type": "application/json"}
            connection.request("POST", "/api/sign-in", body, {"host": "console.example.org", **kind})
            response = connection.getresponse()
            response.read()
            connection.close()
            return response

        answer = await asyncio.to_thread(sign_in)
    assert answer.status == 200
    attributes = {part.strip().lower() for part in (answer.getheader("set-cookie") or "").split(";")[1:]}
    assert {"secure", "httponly", "samesite=strict"} <= attributes


async def test_an_empty_stack_is_shown(empty: ConsoleHouse) -> None:
    browser = await empty.entered("vera")
    assert (await browser.ask("/api/tasks")).json == {"tasks": []}
    services = (await browser.ask("/api/services")).json
    assert [each["answers"] for each in services["aggregators"]] == [True]
    assert (await browser.ask("/api/audit")).json == {"entries": []}
    unknown = await browser.ask("/api/tasks/nothing")
    assert (unknown.status, unknown.json["reason"]) == (404, "UNKNOWN_TASK")


async def test_a_task_is_shown_with_what_an_operator_reads_first(lived: ConsoleHouse) -> None:
    browser = await lived.entered("vera")
    (task,) = (await browser.ask("/api/tasks")).json["tasks"]
    assert (task["committed"], task["abandoned"]) == (ROUNDS, 2)
    assert task["share_committed"] == pytest.approx(ROUNDS / (ROUNDS + 2))
    assert task["last_commit"] > 0
    assert task["privacy"]["statement"].startswith("no DP guarantee")
    assert not task["privacy"]["guaranteed"]
    rounds = (await browser.ask(f"/api/tasks/{TASK}/rounds?limit=10")).json["rounds"]
    assert len(rounds) == 10
    older = (await browser.ask(f"/api/tasks/{TASK}/rounds?limit=500&before={rounds[-1]['round']}")).json["rounds"]
    assert {each["round"] for each in older} == set(range(1, rounds[-1]["round"]))
    (abandoned, again) = [each for each in older if each["round"] == 7][::-1]
    assert (abandoned["phase"], again["phase"]) == ("abandoned", "committed")
    assert again["waiting"] >= again["assigned"] >= again["trained"] >= again["counted"] > 0
    told = (await browser.ask(f"/api/tasks/{TASK}/rounds/7")).json
    assert any("Abandoned because the reporting window has ended" in sentence for sentence in told["story"])
    points = (await browser.ask(f"/api/tasks/{TASK}/history?points=8")).json["points"]
    assert (len(points), points[-1]["last"]) == (8, ROUNDS)
    assert {each["training"]["name"] for each in points} == {"RMSE"}
    assert any(each["evaluation"] for each in points)
    packed = await browser.ask(f"/api/tasks/{TASK}/rounds", **{"accept-encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert len(packed.body) < 250 * len(json.loads(gzip.decompress(packed.body))["rounds"])
    assert all(0 <= each["dropout"] < 1 < each["over_selection"] for each in points)
    checkpoints = (await browser.ask(f"/api/tasks/{TASK}/checkpoints")).json["checkpoints"]
    assert [each["round"] for each in checkpoints if each["live"]] == [23], "round 24 evaluated it"
    assert (await browser.ask(f"/api/tasks/{TASK}/history?points=many")).status == 400


async def test_roles_hold_and_every_change_is_in_the_audit(lived: ConsoleHouse) -> None:
    vera, olga, ada = [await lived.entered(name) for name in ("vera", "olga", "ada")]
    path = f"/api/tasks/{TASK}"
    for verb in ("pause", "roll-back"):
        answer = await vera.change(f"{path}/{verb}", {"round": 11})
        assert (answer.status, answer.json["reason"]) == (403, "ROLE_TOO_LOW"), verb
    paused = await olga.change(f"{path}/pause", {"reason": "lunch"})
    assert (paused.json["state"], paused.json["reason"]) == ("paused", "lunch")
    assert (await olga.change(f"{path}/resume")).json["state"] == "running"
    rolled_back = await olga.change(f"{path}/roll-back", {"round": 11, "reason": "worse on new users"})
    assert rolled_back.json["live_round"] == 11
    assert (await olga.change(f"{path}/roll-back", {"round": "11"})).status == 400
    assert (await olga.change(f"{path}/roll-back", {"round": 6})).json["reason"] == "UNKNOWN_CHECKPOINT"
    assert (await olga.change(f"{path}/cancel", {"confirmed": TASK})).json["reason"] == "ROLE_TOO_LOW"
    assert (await ada.change(f"{path}/cancel", {"reason": "over"})).json["reason"] == "NOT_CONFIRMED"
    cancelled = await ada.change(f"{path}/cancel", {"reason": "over", "confirmed": TASK})
    assert cancelled.json["state"] == "cancelled"
    entries = (await vera.ask(f"/api/audit?task={TASK}")).json["entries"]
    assert [(each["operator"], each["action"], each["reason"]) for each in entries] == [
        ("ada", "CancelTask", "over"),
        ("olga", "RollBack", "to round 11: worse on new users"),
        ("olga", "ResumeTask", ""),
        ("olga", "PauseTask", "lunch"),
        ("olga", "CreateTask", ""),
    ]


async def test_changes_are_streamed_while_a_round_runs(lived: ConsoleHouse) -> None:
    coordinator = lived.built.coordinators[0]
    browser = await lived.entered("vera")
    host, _, port = lived.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    request = f"GET /api/tasks/{TASK}/events HTTP/1.1\r\nhost: {lived.address}\r\ncookie: {browser.cookie}\r\n\r\n"
    writer.write(request.encode())
    seen = []

    async def listen() -> None:
        async for line in reader:
            if line.startswith(b"data: "):
                seen.append(json.loads(line.removeprefix(b"data: ")))  # noqa: PERF401 - looked at as it grows

    listening = asyncio.create_task(listen())
    await until_true(lambda: bool(seen))
    assigned = await coordinator.assign(1, 2, 3)
    await lived.built.sums.report(assigned[0].round, 1)
    await until_true(lambda: seen[-1]["round"]["reported"] == 1)
    assert seen[-1]["round"]["phase"] == "reporting"
    await lived.built.sums.report(assigned[0].round, 2)
    await coordinator.until(Phase.COMMITTED, ROUNDS + 1)
    await until_true(lambda: seen[-1]["committed"] == ROUNDS + 1)
    lived.stopping.set()  # a console that is stopped does not wait for those who watch
    async with asyncio.timeout(SECONDS):
        await listening
    writer.close()


async def test_a_coordinator_that_is_away_is_told_and_a_withdrawn_token_ends_its_session(lived: ConsoleHouse) -> None:
    browser = await lived.entered("olga")
    coordinator = lived.built.coordinators[0]
    known = dict(coordinator.callers.operators or {}) if coordinator.callers else {}
    try:
        assert coordinator.callers is not None
        coordinator.callers.operators.clear()  # type: ignore[union-attr]  # a test's own table
        answer = await browser.ask("/api/tasks")
        assert (answer.status, answer.json["reason"]) == (401, "UNKNOWN_OPERATOR")
        assert (await browser.ask("/api/me")).json == {}
    finally:
        coordinator.callers.operators.update(known)  # type: ignore[union-attr]  # the same
    browser = await lived.entered("olga")
    await coordinator.stop()
    away = await browser.ask("/api/tasks")
    assert (away.status, away.json["reason"]) == (503, "COORDINATOR_AWAY")
