"""The clumsy user and the unlucky operator: each mistake is told with what was wrong, where, and what to do.

Commands run as a person runs them; what needs services runs on one real stack. A command that ends in an exception
fails its test: nobody should see a traceback for a mistake of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fedrecon.device_sdk import ExampleStore, Outcome, Participation
from fedrecon.device_sdk.errors import InvalidExampleError, UnusablePlanError
from fedrecon.device_sdk.plans import load_plan
from fedrecon.ops.admin_client import open_admin
from fedrecon.ops.command import EXIT_FAILED, EXIT_MISTAKE, EXIT_UNREACHABLE, main
from fedrecon.ops.durable_files import StorageFull
from fedrecon.ops.embedded_valkey import find_valkey
from fedrecon.ops.fleet.behaviour import Behaviour
from fedrecon.ops.fleet.people import ITEM, RATING, People, Person
from fedrecon.ops.fleet.running import Fleet
from fedrecon.ops.settings import Settings
from fedrecon.ops.stack import Stack
from fedrecon.ops.task_commands import create_task
from fedrecon.ops.task_specs import build_spec
from fedrecon.ops.tls import server_authority
from fedrecon.v1 import admin_pb2 as admin
from fedrecon.wire.digests import digest_of
from support.town import DEFAULTS, Town

UP_SECONDS = 30
ENOUGH_REPORTS = 6


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it said."""

    code: int
    text: str

    def assert_tells(self, code: int, *fragments: str) -> None:
        assert self.code == code, self.text
        for fragment in fragments:
            assert fragment in self.text, self.text


Command = Callable[..., Said]


@pytest.fixture
def fedrecon(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in this process."""

    def run(*arguments: str | Path) -> Said:
        capsys.readouterr()
        code = main([str(each) for each in arguments])
        told = capsys.readouterr()
        return Said(code, told.out + told.err)

    return run


def up(home: Path, **variables: str) -> Said:
    """Runs `fedrecon up`, which is expected to refuse."""
    command = [sys.executable, "-m", "fedrecon.ops", "up"]
    environment = {**os.environ, "FEDRECON_HOME": str(home), **variables}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=UP_SECONDS, check=False)
    text = ended.stdout + ended.stderr
    assert "Traceback" not in text
    return Said(ended.returncode, text)


# -- settings and commands, without any service ----------------------------------------------------------------------


@pytest.mark.parametrize("words", ["up", "task list", "rounds list films", "fleet", "export films", "demo"])
def test_a_misspelt_setting_names_the_right_one(
    fedrecon: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str
) -> None:
    monkeypatch.setenv("FEDRECON_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FEDRECON_AGGREGATOR_PROT", "1")
    fedrecon(*words.split()).assert_tells(
        EXIT_MISTAKE, "FEDRECON_AGGREGATOR_PROT", "did you mean FEDRECON_AGGREGATOR_PORT"
    )
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("words", ["task list", "task show films", "rounds list films", "export films", "fleet"])
def test_without_a_stack_a_command_says_how_to_start_one(
    fedrecon: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: str
) -> None:
    monkeypatch.setenv("FEDRECON_HOME", str(tmp_path / "home"))
    fedrecon(*words.split()).assert_tells(EXIT_MISTAKE, "No stack runs", "fedrecon up", "--server host:port")


def test_a_coordinator_that_is_not_there_is_told_from_a_mistake(fedrecon: Command) -> None:
    fedrecon("task", "list", "--server", "127.0.0.1:1").assert_tells(EXIT_UNREACHABLE, "did not answer", "doctor")
    fedrecon("fleet", "--server", "127.0.0.1:1").assert_tells(EXIT_UNREACHABLE, "127.0.0.1:1", "coordinator runs")
    fedrecon("task", "list", "--server", "").assert_tells(EXIT_MISTAKE, "host:port")


@pytest.mark.parametrize("words", ["frobnicate", "task frob", "task create", "rounds why films 0", "demo --rounds 0"])
def test_wrong_words_are_a_mistake(fedrecon: Command, words: str) -> None:
    fedrecon(*words.split()).assert_tells(EXIT_MISTAKE, "Error")


# -- data ------------------------------------------------------------------------------------------------------------


def movielens(folder: Path, broken: str) -> Path:
    """Writes a folder like MovieLens 1M with one line that is not as it should be."""
    folder.mkdir()
    lines = [f"{user}::{item}::{1 + (user + item) % 5}::978300000" for user in range(1, 21) for item in range(1, 21)]
    lines[99] = broken
    (folder / "ratings.dat").write_text("\n".join(lines) + "\n", encoding="latin-1")
    return folder


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("5::21::4", "wrong number of columns"),
        ("5::21::9::978300000", "outside the scale 0.5 to 5"),
        ("5::21::four::978300000", "'four' is not a number"),
        ("", "wrong number of columns"),
    ],
)
def test_one_broken_line_of_a_data_file_is_named(fedrecon: Command, tmp_path: Path, broken: str, why: str) -> None:
    folder = movielens(tmp_path / "ml-1m", broken)
    for words in (["data", "show", folder], ["demo", "--data", folder], ["fleet", "--data", folder]):
        fedrecon(*words).assert_tells(EXIT_MISTAKE, "ratings.dat, line 100", why)


def test_a_folder_without_data_says_what_was_looked_for(fedrecon: Command, tmp_path: Path) -> None:
    for words in (["data", "show"], ["demo", "--data"], ["fleet", "--data"]):
        fedrecon(*words, tmp_path).assert_tells(EXIT_MISTAKE, "holds no ratings", "ratings.dat, u.data, ratings.csv")
        fedrecon(*words, tmp_path / "gone").assert_tells(EXIT_MISTAKE, "does not exist")


# -- plans -----------------------------------------------------------------------------------------------------------


def largest_blob(plan: Path) -> Path:
    return max((plan / "blobs").iterdir(), key=lambda path: path.stat().st_size)


def flip(path: Path) -> None:
    """Changes one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def age(plan: Path) -> None:
    manifest = json.loads((plan / "manifest.json").read_text())
    (plan / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))


def truncate(plan: Path) -> None:
    os.truncate(largest_blob(plan), 100)


def empty(plan: Path) -> None:
    shutil.rmtree(plan)
    plan.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "another format": (age, ("format 99", "this version runs 1", "upgrade fedrecon")),
    "a truncated blob": (truncate, ("blobs/", "ompile the plan again")),
    "a flipped bit": (lambda plan: flip(largest_blob(plan)), ("blobs/", "ompile the plan again")),
    "a blob gone": (lambda plan: largest_blob(plan).unlink(), ("blobs/", "cannot be read", "no such file")),
    "no JSON": (lambda plan: (plan / "manifest.json").write_bytes(b"\xff\x00"), ("manifest cannot be read",)),
    "no signature": (lambda plan: (plan / "signature.json").unlink(), ("signature.json", "no such file")),
    "an empty folder": (empty, ("manifest.json", "no such file")),
    "no folder": (shutil.rmtree, ("manifest.json", "no such file")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_plan_is_refused_before_anything_is_stored(
    fedrecon: Command, stack: Stack, plan_folder: Path, tmp_path: Path, damage: str
) -> None:
    plan = shutil.copytree(plan_folder, tmp_path / "plan")
    stored = sorted((stack.home / "blobs").glob("??/*"))
    change, fragments = DAMAGES[damage]
    change(plan)
    fedrecon("task", "create", "damaged-plan", "--plan", plan).assert_tells(EXIT_MISTAKE, str(plan), *fragments)
    assert sorted((stack.home / "blobs").glob("??/*")) == stored
    assert "damaged-plan" not in fedrecon("task", "list").text
    assert fedrecon("plan", "verify", plan).code == EXIT_MISTAKE
    if damage != "no signature":  # an export needs none
        assert fedrecon("export", "--plan", plan, "--out", tmp_path / "films.onnx").code == EXIT_MISTAKE
        assert not list(tmp_path.glob("films*"))


def test_a_device_refuses_a_plan_of_another_format(plan_folder: Path, tmp_path: Path) -> None:
    plan = shutil.copytree(plan_folder, tmp_path / "plan")
    age(plan)
    with pytest.raises(UnusablePlanError, match=r"format 99.*upgrade"):
        load_plan((plan / "manifest.json").read_bytes(), lambda digest: (plan / "blobs" / digest.hex()).read_bytes())


def test_plans_and_keys_are_never_overwritten(fedrecon: Command, plan_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("key,title\n1,One\n2,Two\n")
    key = tmp_path / "publisher.pem"
    assert fedrecon("plan", "keygen", key).code == 0
    before = (key.read_bytes(), (plan_folder / "manifest.json").read_bytes())
    fedrecon("plan", "keygen", key).assert_tells(EXIT_MISTAKE, str(key), "never overwritten")
    words = ("plan", "compile", "--items", tmp_path / "items.csv", "--key", key, "--out", plan_folder)
    fedrecon(*words).assert_tells(EXIT_MISTAKE, str(plan_folder), "never overwritten", "another folder")
    assert (key.read_bytes(), (plan_folder / "manifest.json").read_bytes()) == before


# -- recommending ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recommender(plan_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("export") / "films.onnx"
    assert main(["export", "--plan", str(plan_folder), "--out", str(file)]) == 0
    return file


@pytest.mark.parametrize(
    ("ratings", "fragments"),
    [
        (["1=9"], ("9 is not on the scale", "from 0.5 to 5")),
        (["1=abc"], ("has no number", "TITLE OR KEY=5")),
        (["No such title=5"], ("no item is called 'No such title'", "or the key")),
        (["1=5", "1=3"], ("rated already",)),
    ],
)
def test_a_wrong_rating_is_told_in_its_own_words(
    fedrecon: Command, recommender: Path, ratings: Sequence[str], fragments: tuple[str, ...]
) -> None:
    words = [word for rating in ratings for word in ("--rate", rating)]
    fedrecon("recommend", recommender, *words).assert_tells(EXIT_MISTAKE, f"--rate '{ratings[-1]}'", *fragments)


@pytest.mark.parametrize("suffix", [".onnx", ".items"])
def test_a_damaged_recommender_is_refused(fedrecon: Command, recommender: Path, tmp_path: Path, suffix: str) -> None:
    copies = {each.suffix: Path(shutil.copy(each, tmp_path)) for each in recommender.parent.iterdir()}
    os.truncate(copies[suffix], 200)
    fedrecon("recommend", copies[".onnx"], "--rate", "1=5").assert_tells(EXIT_MISTAKE, "Export it again")
    fedrecon("recommend", tmp_path / "gone.onnx").assert_tells(EXIT_MISTAKE, "gone.onnx cannot be read")


def test_an_export_that_cannot_be_written_leaves_nothing(fedrecon: Command, plan_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    fedrecon("export", "--plan", plan_folder, "--out", tmp_path / "films").assert_tells(EXIT_MISTAKE, "is a folder")
    fedrecon("export", "--plan", plan_folder, "--out", "/proc/films.onnx").assert_tells(EXIT_MISTAKE, "--out")
    assert [path.name for path in tmp_path.iterdir()] == ["films"]


# -- an app's examples -----------------------------------------------------------------------------------------------


def test_a_rating_outside_the_scale_never_enters_the_store() -> None:
    with ExampleStore(":memory:", fields={"item": str, "rating": (0.5, 5.0)}) as store:
        with pytest.raises(InvalidExampleError, match=r"rating.*9.*0\.5.*5"):
            store.extend([{"item": "1", "rating": 4.0}, {"item": "2", "rating": 9.0}])
        assert store.count() == 0


# -- starting a stack ------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_named_with_its_setting(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        said = up(tmp_path / "home", FEDRECON_COORDINATOR_PORT=port)
    said.assert_tells(
        EXIT_MISTAKE, f"FEDRECON_COORDINATOR_PORT: 127.0.0.1:{port}", "address already in use", "Stop what"
    )
    assert not (tmp_path / "home" / "stack.json").exists()


@pytest.mark.parametrize(
    ("variables", "code", "fragments"),
    [
        ({"FEDRECON_REDIS_URL": "redis://127.0.0.1:1"}, EXIT_UNREACHABLE, ("FEDRECON_REDIS_URL", "127.0.0.1:1")),
        ({"FEDRECON_REDIS_URL": "127.0.0.1:1"}, EXIT_MISTAKE, ("FEDRECON_REDIS_URL", "begins with redis://")),
        ({"FEDRECON_COORDINATOR_PORT": "high"}, EXIT_MISTAKE, ("FEDRECON_COORDINATOR_PORT is 'high'",)),
        ({"FEDRECON_METRICS_PORT": "7777"}, EXIT_MISTAKE, ("FEDRECON_METRICS_PORT", "cannot share one port")),
    ],
)
def test_a_stack_that_cannot_run_is_refused_before_it_starts(
    tmp_path: Path, variables: dict[str, str], code: int, fragments: tuple[str, ...]
) -> None:
    up(tmp_path / "home", **variables).assert_tells(code, *fragments)
    assert not (tmp_path / "home").exists()


def test_a_host_that_is_not_this_machine_is_named(tmp_path: Path) -> None:
    logs = tmp_path / "home" / "logs"
    logs.mkdir(parents=True)
    (logs / "aggregator.log").write_text("an old complaint\n")
    said = up(tmp_path / "home", FEDRECON_HOST="192.0.2.1")
    said.assert_tells(EXIT_MISTAKE, "FEDRECON_HOST: 192.0.2.1", "127.0.0.1")
    assert "an old complaint" not in said.text, "what a predecessor logged is not its own"


def test_a_redis_that_forgets_is_refused_with_what_to_change(tmp_path: Path) -> None:
    place = tmp_path / "valkey.sock"
    server = subprocess.Popen(
        [str(find_valkey()), "--port", "0", "--unixsocket", str(place), "--dir", str(tmp_path), "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    try:
        said = up(tmp_path / "home", FEDRECON_REDIS_URL=f"unix://{place}")
    finally:
        server.terminate()
        server.wait()
    said.assert_tells(EXIT_MISTAKE, "FEDRECON_REDIS_URL", "appendonly is no", "CONFIG SET appendonly yes")
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("kind", ["a file", "in a file", "in /proc"])
def test_a_home_that_cannot_be_written_is_named(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").touch()
    home = {"a file": tmp_path / "file", "in a file": tmp_path / "file" / "home", "in /proc": Path("/proc/home")}[kind]
    up(home).assert_tells(EXIT_MISTAKE, f"FEDRECON_HOME: the stack cannot keep anything in {home}", "you may write")


# -- a running stack -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(Settings(home=tmp_path_factory.mktemp("bad") / "home")) as stack:
        yield stack


@pytest.fixture
def stack(running_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """The stack that commands find by themselves."""
    monkeypatch.setenv("FEDRECON_HOME", str(running_stack.home))
    return running_stack


def test_a_second_stack_on_a_home_is_refused_and_the_first_goes_on(fedrecon: Command, stack: Stack) -> None:
    up(stack.home).assert_tells(EXIT_MISTAKE, "runs already", str(os.getpid()), "FEDRECON_HOME to another folder")
    assert fedrecon("task", "list").code == 0


@pytest.mark.parametrize(
    "words",
    [
        "task show nothing",
        "task pause nothing",
        "task resume nothing",
        "task cancel nothing",
        "rounds list nothing",
        "rounds why nothing 1",
        "rounds watch nothing",
        "export nothing",
    ],
)
@pytest.mark.usefixtures("stack")
def test_an_unknown_task_is_named_by_every_command(fedrecon: Command, words: str) -> None:
    fedrecon(*words.split()).assert_tells(EXIT_UNREACHABLE, "no task 'nothing'", "UNKNOWN_TASK", "create the task")


@pytest.mark.usefixtures("stack")
def test_a_fleet_without_a_task_says_why_nobody_works(fedrecon: Command) -> None:
    said = fedrecon("fleet", "--population", "nothing", "--devices", "3", "--seconds", "1")
    said.assert_tells(0, "population 'nothing' has no running task")


@pytest.mark.parametrize(
    ("assignments", "code", "fragments"),
    [
        (["rounds.report_goal=0"], EXIT_UNREACHABLE, ("rounds.report_goal: at least 1",)),
        (["rounds.report_goal=-5"], EXIT_MISTAKE, ("rounds.report_goal", "out of range: -5")),
        (["rounds.report_goal=inf"], EXIT_MISTAKE, ("rounds.report_goal inf", "rounds.report_goal=20")),
        (["rounds.report_goal=99999999999"], EXIT_MISTAKE, ("rounds.report_goal", "out of range")),
        (["rounds.report_goal=1000000000"], EXIT_UNREACHABLE, ("a cohort of 1300000000 devices is larger",)),
        (["rounds.over_selection=0.5"], EXIT_UNREACHABLE, ("rounds.over_selection 0.5: 1 to 100",)),
        (["rounds.over_selection=nan"], EXIT_MISTAKE, ("rounds.over_selection nan",)),
        (["rounds.reprot_goal=3"], EXIT_MISTAKE, ("no rounds.reprot_goal", "report_goal")),
        (["rounds=3"], EXIT_MISTAKE, ("rounds is 3", "rounds.report_goal=20")),
        (["secure_sum=trusted"], EXIT_MISTAKE, ("secure_sum is 'trusted'",)),
        (["secure_sum.ring_bits=17"], EXIT_UNREACHABLE, ("secure_sum.ring_bits 17",)),
        (["optimizer.rate=-1"], EXIT_UNREACHABLE, ("optimizer.rate -1",)),
        (["optimizer.rule=ADAM2"], EXIT_MISTAKE, ("optimizer.rule", "ADAM2")),
        (["nonsense"], EXIT_MISTAKE, ("'nonsense' sets nothing", "rounds.report_goal=20")),
        (["bounds.nothing=3"], EXIT_UNREACHABLE, ("bounds.nothing: the layout has no such parameter",)),
    ],
)
@pytest.mark.usefixtures("stack")
def test_impossible_numbers_make_no_task(
    fedrecon: Command, plan_folder: Path, assignments: Sequence[str], code: int, fragments: tuple[str, ...]
) -> None:
    words = [word for assignment in assignments for word in ("--set", assignment)]
    fedrecon("task", "create", "impossible", "--plan", plan_folder, *words).assert_tells(code, *fragments)
    assert "impossible" not in fedrecon("task", "list").text


@pytest.mark.usefixtures("stack")
def test_a_specification_that_is_no_toml_is_named(fedrecon: Command, plan_folder: Path, tmp_path: Path) -> None:
    for name, content in (("binary.toml", b"\xff\xfe\x00"), ("broken.toml", b"[rounds")):
        (tmp_path / name).write_bytes(content)
        words = ("task", "create", "impossible", "--plan", plan_folder, "--spec", tmp_path / name)
        fedrecon(*words).assert_tells(EXIT_MISTAKE, name, "no TOML")
    words = ("task", "create", "impossible", "--plan", plan_folder, "--spec", tmp_path / "gone.toml")
    fedrecon(*words).assert_tells(EXIT_MISTAKE, "gone.toml cannot be read")


@pytest.mark.usefixtures("stack")
def test_a_task_is_created_once_and_its_end_is_final(fedrecon: Command, plan_folder: Path) -> None:
    assert fedrecon("task", "create", "twice", "--plan", plan_folder).code == 0
    assert fedrecon("task", "create", "twice", "--plan", plan_folder).code == 0, (
        "the same again finishes what was begun"
    )
    words = ("task", "create", "twice", "--plan", plan_folder, "--set", "rounds.report_goal=30")
    fedrecon(*words).assert_tells(EXIT_UNREACHABLE, "a task 'twice' already", "another name")
    assert fedrecon("task", "pause", "twice").code == 0
    fedrecon("task", "resume", "twice").assert_tells(0, "running")
    assert fedrecon("task", "pause", "twice").code == 0
    fedrecon("task", "cancel", "twice").assert_tells(0, "cancelled")
    for verb in ("resume", "pause"):
        fedrecon("task", verb, "twice").assert_tells(EXIT_UNREACHABLE, "'twice' is cancelled", "create another")
    fedrecon("rounds", "why", "twice", "99").assert_tells(EXIT_UNREACHABLE, "no round 99")


# -- devices on a running stack --------------------------------------------------------------------------------------


def train(
    stack: Stack, plan: Path, task: str, people: Sequence[Person], enough: Callable[[list[Participation]], bool]
) -> list[Participation]:
    """Lets devices take part in a new task until it is enough; they share the folder `devices` of the stack."""
    small = ("rounds.report_goal=3", "rounds.maximum_rounds=100", "secure_sum.minimum_group=3")
    assignments = [*DEFAULTS, *small, "work.minimum_examples=2"]
    with open_admin(None, stack.home) as stub:
        create_task(stub, build_spec(task, None, assignments), plan)
    ended: list[Participation] = []

    async def run() -> None:
        stopping = asyncio.Event()

        def note(participation: Participation | None) -> None:
            ended.extend([] if participation is None else [participation])
            if enough(ended):
                stopping.set()

        fleet = Fleet(
            people=people,
            coordinator=stack.roles["coordinator"].address,
            population=task,
            behaviour=Behaviour(dropout=0.0, median_seconds=0.0),
            awake=10,
            seed=1,
            cache_folder=stack.home / "devices",
            authority=server_authority(stack.settings),
        )
        async with asyncio.timeout(30):
            await fleet.run(stopping, note)

    asyncio.run(run())
    return ended


def uploaded(ended: list[Participation]) -> bool:
    return sum(each.outcome is Outcome.UPLOADED for each in ended) >= ENOUGH_REPORTS


def changed(person: Person, **columns: Any) -> Person:
    return replace(person, columns={**person.columns, **columns})


def test_items_that_the_model_does_not_know_are_left_out_and_told(
    stack: Stack, plan_folder: Path, people: People
) -> None:
    strangers = []
    for person in people.training[:20]:
        keys = person.columns[ITEM].copy()
        keys[0] = "no such film"
        strangers.append(changed(person, item=keys))
    ended = train(stack, plan_folder, "strange-items", strangers, uploaded)
    assert all(each.unknown_keys == ("no such film",) for each in ended if each.outcome is Outcome.UPLOADED)


def test_a_damaged_cache_of_a_device_is_fetched_again(stack: Stack, plan_folder: Path, people: People) -> None:
    train(stack, plan_folder, "cached", people.training[:20], uploaded)
    cached = [path for path in (stack.home / "devices").iterdir() if path.is_file() and not path.suffix]
    assert cached
    for path in cached:
        flip(path)
    ended = train(stack, plan_folder, "cached-again", people.training[:20], uploaded)
    assert {each.outcome for each in ended} <= {Outcome.UPLOADED, Outcome.REJECTED, Outcome.TOO_LATE}
    used = [path for path in cached if path.name in _names_of_plan(plan_folder)]
    assert used
    assert all(digest_of(path.read_bytes()).hex() == path.name for path in used if path.exists())


def _names_of_plan(plan: Path) -> set[str]:
    return {path.name for path in (plan / "blobs").iterdir()}


def test_ratings_outside_the_scale_are_no_report(stack: Stack, plan_folder: Path, people: People) -> None:
    wrong = [changed(person, rating=person.columns[RATING] + 9.0) for person in people.training[:20]]
    ended = train(stack, plan_folder, "off-the-scale", wrong, lambda ended: any(each.task for each in ended))
    assert not any(each.outcome is Outcome.UPLOADED for each in ended)
    told = next(each for each in ended if each.task)
    assert told.outcome is Outcome.TOO_FEW_EXAMPLES
    assert "rating is not within 0.5 to 5" in told.message


def test_a_damaged_blob_of_the_store_is_moved_aside_and_told(
    fedrecon: Command, stack: Stack, plan_folder: Path, tmp_path: Path
) -> None:
    assert fedrecon("task", "create", "store", "--plan", plan_folder).code == 0
    manifest = (plan_folder / "manifest.json").read_bytes()
    digest = digest_of(manifest).hex()
    stored = stack.home / "blobs" / digest[:2] / digest
    flip(stored)
    said = fedrecon("export", "store", "--out", tmp_path / "films.onnx")
    assert said.code == EXIT_UNREACHABLE, said.text
    assert digest in said.text
    assert not list(tmp_path.iterdir())
    assert not stored.exists()
    logs = "".join(path.read_text() for path in (stack.home / "logs").iterdir())
    assert "blob damaged and moved aside" in logs
    assert fedrecon("task", "create", "store", "--plan", plan_folder).code == 0, "putting it again mends it"
    assert stored.read_bytes() == manifest
    assert fedrecon("export", "store", "--out", tmp_path / "films.onnx").code == 0


def test_a_doctor_finds_something_wrong(fedrecon: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDRECON_REDIS_URL", "redis://127.0.0.1:1")
    fedrecon("doctor").assert_tells(EXIT_FAILED, "journal", "wrong")


# -- a full disk -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mounting, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a small disk")
    try:
        yield disk
    finally:
        subprocess.run([shutil.which("umount") or "umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    assert shutil.disk_usage(disk).free == 0
    return filler


def test_a_full_disk_delays_rounds_and_loses_nothing(
    small_disk: Path, tmp_path: Path, plan_folder: Path, people: People
) -> None:
    kept = small_disk / "kept"
    victims = {"FEDRECON_BLOBS_URL": str(kept / "blobs"), "FEDRECON_AGGREGATOR_FOLDER": str(kept / "sums")}
    stack = Stack(Settings(home=tmp_path / "home"), environment=victims)
    with stack:
        town = Town(stack, people)
        try:
            town.create_task(plan_folder)
            town.wake()
            town.wait_until(lambda task: task.committed >= 1)
            filler = fill(small_disk)
            time.sleep(0.5)  # what was being written ends
            before = town.task()
            time.sleep(1.2)
            during = town.task()
            assert during.state == admin.TASK_STATE_RUNNING
            assert during.committed == before.committed
            assert during.checkpoint == before.checkpoint
            assert not list(kept.glob("**/.writing-*")), "half a file was left behind"
            filler.unlink()
            task = town.wait_until(lambda task: task.state == admin.TASK_STATE_COMPLETED)
            town.sleep_when_told()
        finally:
            town.sleep()
        assert task.committed == 4
        reports = Counter((e.round, e.attempt) for e in town.participations if e.outcome is Outcome.UPLOADED)
        for made in town.rounds():
            key = (made.key.round, made.key.attempt)
            if made.phase == admin.ROUND_PHASE_COMMITTED:
                assert made.counted == reports[key]
    log = (tmp_path / "home" / "logs" / "aggregator.log").read_text()
    assert "STORAGE_FULL" in log or "the disk does not take what it needs" in log


def test_a_stack_on_a_full_disk_goes_on_when_there_is_space(
    fedrecon: Command, monkeypatch: pytest.MonkeyPatch, small_disk: Path, plan_folder: Path
) -> None:
    home = small_disk / "home"
    monkeypatch.setenv("FEDRECON_HOME", str(home))
    with Stack(Settings(home=home)) as stack:
        assert fedrecon("task", "create", "films", "--plan", plan_folder).code == 0
        filler = fill(small_disk)
        said = fedrecon("task", "create", "more", "--plan", plan_folder, "--set", "rounds.report_goal=30")
        said.assert_tells(EXIT_UNREACHABLE, "disk is full", "free some space")
        assert stack.valkey is not None
        os.kill(stack.valkey.pid, signal.SIGKILL)
        while stack.valkey.running:
            time.sleep(0.01)
        with pytest.raises(StorageFull, match="no space left"):
            stack.mend()
        filler.unlink()
        assert "valkey" in stack.mend()
        fedrecon("task", "show", "films").assert_tells(0, "running")


def test_a_full_disk_is_said_by_whoever_starts_a_stack(small_disk: Path) -> None:
    fill(small_disk)
    home = small_disk / "home"
    for _ in range(2):  # the first leaves nothing behind that stops the second
        up(home).assert_tells(EXIT_MISTAKE, "FEDRECON_HOME", "no space left", "free space")
    assert not (home / "keys.json").exists()


def test_damaged_keys_are_never_replaced_silently(tmp_path: Path) -> None:
    keys = tmp_path / "home" / "keys.json"
    keys.parent.mkdir()
    keys.touch()
    up(tmp_path / "home").assert_tells(EXIT_MISTAKE, "keys.json is damaged", "Restore it")
    assert keys.read_bytes() == b""
