"""The fixed protocol of every rating experiment: who trains, who is chosen on, and who is read once at the end.

Users are cut 80/10/10 by a written generator and seed, at most 300 ratings a user are kept after a fixed shuffle, in
training and in evaluation alike, and a user's support and query are alternate batches of 5 (`support_and_query`). The
split lies in the output folder as `split.json`.

Training and validation users are open. The test users are closed until the choices are frozen: `Protocol.test` writes
every choice (configuration, figures on validation, digest of the parameters) to `choices.json` and only then hands out
the test users. The file is made by exclusive creation, so that a folder's test users are read once, whatever happens
in between and however many processes try.

STANDARD EVAL needs users that were trained on: the training users again, each one's kept ratings cut 80/10/10 by time.
Their newest tenth is as closed as the test users.

Source: Singhal et al. 2021, Federated Reconstruction, section 5.1 (arXiv 2102.03448). Without the cap, or with another
cut of the users, the same model moves by 0.01 to 0.02 in RMSE.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrecon.datasets import Ratings, cap_ratings, split_users
from fedrecon.datasets.splits import MOST_RATINGS, SPLIT_SEED
from fedrecon.v1 import task_pb2
from fedrecon.wire import schedules

SPLIT_FILE = "split.json"
CHOICES_FILE = "choices.json"
BATCH_SIZE = 5
ITEM, RATING = "item", "rating"

Client = Mapping[str, NDArray[Any]]
"""One user's examples: `item [ratings] int64` and `rating [ratings] float32`, in one order."""

Clients = tuple[Client, ...]


class ProtocolError(RuntimeError):
    """The test users were asked for too early, or a second time, or of a choice that was not made."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is going to be judged on the test users: frozen before they are read.

    Attributes:
        row: name of the row that it becomes.
        seed: of the run.
        configuration: everything that was chosen, as JSON has it.
        validation: figures on validation users, by name, on which it was chosen; finite, at least one.
        parameters: SHA-256 of the parameters that will be judged, from `digest_of`.

    Raises:
        ProtocolError: there is no figure on validation, or one that is not finite.
    """

    row: str
    seed: int
    configuration: Mapping[str, Any]
    validation: Mapping[str, float]
    parameters: str

    def __post_init__(self) -> None:
        if not self.validation or not all(math.isfinite(figure) for figure in self.validation.values()):
            raise ProtocolError(
                f"row {self.row!r}, seed {self.seed}, was not chosen on validation: its figures are "
                f"{dict(self.validation)}, and a choice needs finite ones"
            )

    def require(self, parameters: Mapping[str, Any]) -> None:
        """Refuse parameters other than those that were frozen.

        Raises:
            ProtocolError: they differ.
        """
        if digest_of(parameters) != self.parameters:
            raise ProtocolError(f"row {self.row!r}, seed {self.seed}: the parameters changed after they were frozen")


@dataclass(frozen=True, slots=True, eq=False)
class SeenUsers:
    """STANDARD EVAL's open part: the training users' own older ratings.

    Attributes:
        train: the oldest eight tenths of each user's kept ratings, oldest first.
        validation: the next tenth, of the same users in the same order.
    """

    train: Clients
    validation: Clients


@dataclass(frozen=True, slots=True, eq=False)
class TestUsers:
    """What was closed.

    Attributes:
        unseen: users that no row was trained or chosen on, in the order of the split.
        seen: the newest tenth of each training user's kept ratings, in the order of `SeenUsers`.
    """

    __test__ = False  # pytest takes classes of this name for tests

    unseen: Clients
    seen: Clients


@dataclass(frozen=True, slots=True, eq=False)
class Protocol:
    """The data of one experiment.

    Attributes:
        items: how many items there are.
        folder: of the output; `split.json` is in it.
        train: users who may take part in rounds, each one's kept ratings in their fixed shuffled order.
        validation: users for choices, likewise.
        seen: the training users' ratings by time, for STANDARD EVAL.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from fedrecon.datasets import generate
        >>> folder = TemporaryDirectory()
        >>> protocol = open_protocol(generate(users=40, items=60, seed=1), Path(folder.name))
        >>> len(protocol.train), len(protocol.validation)
        (32, 4)
        >>> chosen = Choice("mean", 0, {"rounds": 3}, {"rmse": 1.0}, digest_of({}))
        >>> len(protocol.test([chosen]).unseen)
        4
        >>> protocol.test([chosen])
        Traceback (most recent call last):
        ...
        fedrecon.learning.experiments.protocol.ProtocolError: ...
        >>> folder.cleanup()
    """

    items: int
    folder: Path
    train: Clients
    validation: Clients
    seen: SeenUsers
    _ratings: Ratings = field(repr=False)

    def test(self, choices: Sequence[Choice]) -> TestUsers:
        """Freeze the choices, then read the test users: once.

        Args:
            choices: every row and seed that will be judged.

        Returns:
            The users and ratings that were closed until now.

        Raises:
            ProtocolError: there is no choice, a row and seed is chosen twice, or the folder's test users were read.
        """
        freeze(choices, self.folder)
        by_user = self._ratings.by_user()
        parts = split_users(len(by_user))
        return TestUsers(
            unseen=tuple(_client(self._ratings, _kept(by_user[user], user)) for user in parts.test.tolist()),
            seen=tuple(
                _client(self._ratings, _by_time(self._ratings, _kept(by_user[user], user))[2])
                for user in parts.train.tolist()
            ),
        )


def open_protocol(ratings: Ratings, folder: Path) -> Protocol:
    """Split the users, write the split, and open all but the test users.

    Args:
        ratings: the whole dataset.
        folder: of the output; made if it is not there.

    Raises:
        ProtocolError: the folder's test users were read already, or its split is another one.
    """
    parts = split_users(len(ratings.user_keys))
    described = {
        "generator": f"numpy.random.RandomState({SPLIT_SEED}).shuffle of all users, cut 80/10/10",
        "ratings_of_a_user": f"the first {MOST_RATINGS} by numpy.random.RandomState([{SPLIT_SEED}, user]).shuffle",
        "support_and_query": f"alternate batches of {BATCH_SIZE}, the first one supports",
        "items": len(ratings.item_keys),
        "ratings": len(ratings),
        **{
            name: [ratings.user_keys[user] for user in getattr(parts, name)] for name in ("train", "validation", "test")
        },
    }
    write_split(described, folder)
    by_user = ratings.by_user()
    train = [_kept(by_user[user], user) for user in parts.train.tolist()]
    by_time = [_by_time(ratings, kept) for kept in train]
    return Protocol(
        items=len(ratings.item_keys),
        folder=folder,
        train=tuple(_client(ratings, kept) for kept in train),
        validation=tuple(_client(ratings, _kept(by_user[user], user)) for user in parts.validation.tolist()),
        seen=SeenUsers(
            train=tuple(_client(ratings, oldest) for oldest, _, _ in by_time),
            validation=tuple(_client(ratings, middle) for _, middle, _ in by_time),
        ),
        _ratings=ratings,
    )


def write_split(described: Mapping[str, Any], folder: Path) -> None:
    """Write who is in which part as `split.json`, before anybody is trained on.

    Args:
        described: the parts, and how they came about, as JSON has it.
        folder: of the output; made if it is not there.

    Raises:
        ProtocolError: the folder's test users were read already, or its split is another one.
    """
    if (folder / CHOICES_FILE).exists():
        raise _already_read(folder)
    written = json.dumps(described) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SPLIT_FILE
    if path.exists() and path.read_text(encoding="utf-8") != written:
        raise ProtocolError(f"{path} is the split of other data: name another output folder")
    path.write_text(written, encoding="utf-8")


def freeze(choices: Sequence[Choice], folder: Path) -> None:
    """Write every choice as `choices.json`: whoever has done so may read the test users, once.

    Args:
        choices: every row and seed that will be judged.
        folder: of the output.

    Raises:
        ProtocolError: there is no choice, a row and seed is chosen twice, or the folder's test users were read.
    """
    if not choices:
        raise ProtocolError("the test users are read after a choice: there is none")
    if len({(choice.row, choice.seed) for choice in choices}) < len(choices):
        raise ProtocolError("a row is chosen twice for one seed: the better one would be picked by the test users")
    frozen = json.dumps({"choices": [asdict(choice) for choice in choices]}, indent=1, allow_nan=False)
    try:
        with (folder / CHOICES_FILE).open("x", encoding="utf-8") as file:
            file.write(frozen + "\n")
    except FileExistsError:
        raise _already_read(folder) from None


def support_and_query(examples: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give the halves of an evaluation, as devices make them: alternate batches of 5.

    Args:
        examples: how many a user has.

    Returns:
        Positions of the support set and of the query set, ascending, disjoint, together all.
    """
    return schedules.split(examples, task_pb2.SPLIT_RULE_ALTERNATE_BATCHES, batch_size=BATCH_SIZE)


def digest_of(parameters: Mapping[str, Any]) -> str:
    """Give the SHA-256 of arrays by name: of names, types, shapes and bytes, in the order of the names.

    Args:
        parameters: numpy arrays, or tensors that numpy can read.
    """
    digest = hashlib.sha256()
    for name in sorted(parameters):
        array = np.ascontiguousarray(parameters[name])
        digest.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _already_read(folder: Path) -> ProtocolError:
    return ProtocolError(
        f"the test users of {folder} were read already, for the choices in its {CHOICES_FILE}: "
        "whatever is chosen now knows them; name another output folder"
    )


def _kept(positions: NDArray[np.int64], user: int) -> NDArray[np.int64]:
    """Give the positions of a user's kept ratings, in their fixed shuffled order."""
    return positions[cap_ratings(len(positions), user)]


def _by_time(ratings: Ratings, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Cut one user's positions 80/10/10 by time; ratings of one second stay in the order of the source."""
    in_source = np.sort(positions)
    oldest_first = in_source[np.argsort(ratings.timestamps[in_source], kind="stable")]
    count = len(positions)
    return tuple(np.split(oldest_first, [count * 8 // 10, count * 9 // 10]))


def _client(ratings: Ratings, positions: NDArray[np.int64]) -> Client:
    return {ITEM: ratings.items[positions], RATING: ratings.ratings[positions]}
