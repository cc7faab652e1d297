"""A whole app in a terminal: rate films, get recommendations, take part, and see what left.

    python films.py --demo                       # services in memory, six films
    python films.py --server localhost:7001 --authority certs/authority.pem --publisher KEY

Type `help` for its commands.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from fedrecon.device_sdk import BackgroundJob, Conditions, Device, ExampleStore, FedreconError


class App:
    """What the user can do.

    Args:
        device: takes part and recommends.
        examples: the user's ratings.
    """

    def __init__(self, device: Device, examples: ExampleStore) -> None:
        self._device, self._examples = device, examples
        # The user is here and asked for it: idle is what a phone in a drawer is. A real app calls `start` once.
        self._job = BackgroundJob(device, Conditions(idle=lambda: True))
        self.commands: dict[str, Callable[..., Any]] = {
            "rate": self.rate,
            "recommend": self.recommend,
            "take-part": self.take_part,
            "history": self.history,
            "opt-out": device.opt_out,
            "opt-in": device.opt_in,
            "forget": self.forget,
            "help": lambda: say("commands: " + ", ".join([*self.commands, "quit"])),
        }

    def rate(self, film: str, stars: str) -> None:
        """Remembers a rating, on this device."""
        self._examples.add(item=film, rating=float(stars))
        say(f"{self._examples.count()} ratings")

    def recommend(self, count: str = "3") -> None:
        """Shows the best films for this user."""
        for each in self._device.recommend(int(count)):
            say(f"{each.score:6.2f}  {each.title}")

    def take_part(self) -> None:
        """Takes part in training, if this is the time for it."""
        turn = self._job.take_turn()
        say(turn.message or turn.outcome.value)

    def history(self) -> None:
        """Shows what left the device, when, and to whom."""
        for each in self._device.history():
            moment = datetime.fromtimestamp(each.ended).astimezone()
            say(f"{moment:%d %b %H:%M} {each.outcome.value}: {each.receipt.bytes} bytes")
            say(str(each.receipt))

    def forget(self) -> None:
        """Removes everything that is known of the user."""
        done = self._device.forget()
        say("forgotten" if done else "forgotten here; the services could not be asked")

    def run(self, line: str) -> None:
        """Does what the user typed; a mistake is said, not raised."""
        name, *arguments = shlex.split(line)
        try:
            self.commands[name](*arguments)
        except KeyError:
            say(f"no command {name!r}: try help")
        except (FedreconError, TypeError, ValueError) as error:
            say(str(error))


def say(text: str) -> None:
    """Shows a line."""
    sys.stdout.write(f"{text}\n")


def main() -> None:
    """Reads commands until `quit` or the end of the input."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--home", type=Path, default=Path("films-home"))
    parser.add_argument("--server", default="localhost:7001")
    parser.add_argument("--publisher", help="whose plans may run")
    parser.add_argument("--authority", type=Path)
    parser.add_argument("--demo", action="store_true", help="services in memory")
    given = parser.parse_args()
    given.home.mkdir(exist_ok=True)
    settings: dict[str, Any] = {"home": given.home, "trusted_plans": [given.publisher] if given.publisher else []}
    if given.demo:
        from fedrecon.device_sdk.testing import FakeTransport

        settings["transport"] = transport = FakeTransport()
        settings["trusted_plans"] = [transport.publisher]
    elif given.authority:
        settings["authority"] = given.authority.read_bytes()
    with ExampleStore(given.home / "examples.db", fields={"item": str, "rating": (0.5, 5.0)}) as examples:
        app = App(Device(given.server, "films", examples, **settings), examples)
        for line in sys.stdin:
            if line.strip() == "quit":
                break
            if line.strip():
                app.run(line)


if __name__ == "__main__":
    main()
