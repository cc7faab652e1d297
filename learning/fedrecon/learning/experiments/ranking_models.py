"""What the ranking experiment compares: recipes that were chosen on validation users, and how each becomes a ranker.

A recipe sees training users and gives a `Ranker`, which scores every item for users never seen, from what they are
known to have. All recipes see the same: which items a user rated, at most 300; only the rating model sees the stars.

What was tried on validation users (recall@10): 20 to 500 neighbours, taken of the item to be ranked or of the user's
items (.40 to .47); implicit ALS with weights .03 to 1 and ridges .001 to .03, or a ridge that does not grow (.39 to
.51); ours with 32 to 128 factors, weights 10 to 300, ridges 2 to 10, cohorts of 50 to 200, fresh halves, no split, and
a background by user instead of by example (.48 to .51), and with Adam in place of Adagrad (.48 to .49).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import vmap

from fedrecon.learning.baselines.central_als import CentralAls
from fedrecon.learning.baselines.implicit_als import ImplicitAls, fit_implicitly, fold_in
from fedrecon.learning.baselines.item_neighbours import fit_neighbours
from fedrecon.learning.baselines.popularity import popularity
from fedrecon.learning.experiments.movielens_models import Simulators
from fedrecon.learning.experiments.movielens_rows import Judged
from fedrecon.learning.experiments.movielens_runs import opened_of, run_training
from fedrecon.learning.experiments.protocol import ITEM, Clients, Protocol, support_and_query
from fedrecon.learning.model import Tensors
from fedrecon.learning.models.implicit_feedback import ITEM_VECTORS, implicit_feedback
from fedrecon.learning.simulation.batches import Half
from fedrecon.learning.simulation.cohorts import Simulator
from fedrecon.learning.simulation.examples import ClientExamples
from fedrecon.learning.simulation.training import Training, train
from fedrecon.v1 import plan_pb2, task_pb2

CHOSEN = "chosen"
USERS_AT_ONCE = 32

Scores = NDArray[Any]
"""`[users, items]`, the higher the better."""


@dataclass(frozen=True, slots=True, eq=False)
class Users:
    """Users never trained on, whose items are half known and half to be found.

    Attributes:
        examples: all of their items and ratings.
        support: which examples are known.
        known: `[users, items] bool`, the same by item.
        wanted: `[users, items] bool`, the other half.
    """

    examples: ClientExamples
    support: Half
    known: NDArray[np.bool_]
    wanted: NDArray[np.bool_]

    def forgotten(self) -> Users:
        """Give the same users as if nothing were known of them."""
        nothing = Half(np.zeros(0, dtype=np.int64), np.zeros_like(self.support.offsets))
        return replace(self, support=nothing, known=np.zeros_like(self.known))


@dataclass(frozen=True, slots=True, eq=False)
class Ranker:
    """A trained model, ready to rank.

    Attributes:
        parameters: all that was learned, by name.
        score: users -> scores; sees of them what is known, nothing else.
        bytes_each_way: that a client downloads in a round, and as many that it uploads; None where examples travel.
    """

    parameters: Mapping[str, Any]
    score: Callable[[Users], Scores]
    bytes_each_way: int | None = None


@dataclass(frozen=True, slots=True)
class Popularity:
    """The same ranking for everybody."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Item neighbours.

    Attributes:
        count: of an item.
    """

    count: int = 200


@dataclass(frozen=True, slots=True)
class FederatedChoices:
    """Rounds of the implicit-feedback model; halves of a client's items are drawn anew for every round.

    Attributes:
        factors: length of the vectors.
        weight: of the background.
        ridge: of the user vector's distance from the learned default.
        cohort: clients in a round.
        rounds: how many.
        server_rate: of server Adagrad with momentum 0.9.
        server_adaptivity: of the same.
    """

    factors: int = 64
    weight: float = 50.0
    ridge: float = 10.0
    cohort: int = 100
    rounds: int = 400
    server_rate: float = 0.1
    server_adaptivity: float = 1e-6


Recipe = CentralAls | Popularity | Neighbours | ImplicitAls | FederatedChoices

MOST_QUERIED = 150
"""Half of the 300 ratings that a user has at most: the update's one step takes them all."""


def users_of(clients: Clients, items: int) -> Users:
    """Give users with their halves: alternate batches of 5, the first one known.

    Args:
        clients: each one's items and ratings, in their fixed order.
        items: how many items there are.
    """
    known, wanted = (np.zeros((len(clients), items), dtype=bool) for _ in range(2))
    examples = examples_of(clients)
    positions = []
    for number, client in enumerate(clients):
        support, query = support_and_query(len(client[ITEM]))
        known[number, client[ITEM][support]] = True
        wanted[number, client[ITEM][query]] = True
        positions.append(examples.offsets[number] + support)
    ends = np.cumsum([0, *map(len, positions)]).astype(np.int64)
    return Users(examples, Half(np.concatenate(positions), ends), known, wanted)


def examples_of(clients: Clients) -> ClientExamples:
    """Give users as the simulation takes them: items, ratings, and that each item was chosen."""
    return ClientExamples.from_clients(
        [{**client, CHOSEN: np.ones(len(client[ITEM]), dtype=np.float32)} for client in clients]
    )


def interactions_of(clients: Clients, items: int) -> NDArray[np.bool_]:
    """Give who has what, `[users, items] bool`."""
    interactions = np.zeros((len(clients), items), dtype=bool)
    for number, client in enumerate(clients):
        interactions[number, client[ITEM]] = True
    return interactions


def train_ranker(recipe: Recipe, protocol: Protocol, seed: int) -> Ranker:
    """Train a recipe on the training users.

    Args:
        recipe: what to train.
        protocol: whose open users it sees.
        seed: of everything that is drawn.
    """
    match recipe:
        case Popularity():
            counts = popularity(interactions_of(protocol.train, protocol.items))
            return Ranker({"users": counts}, lambda users: np.tile(counts, (len(users.known), 1)))
        case Neighbours(count=count):
            likeness = fit_neighbours(interactions_of(protocol.train, protocol.items), count)
            return Ranker({"likeness": likeness}, lambda users: users.known.astype(np.float32) @ likeness)
        case ImplicitAls():
            vectors = fit_implicitly(interactions_of(protocol.train, protocol.items), recipe, seed)
            return Ranker(
                {ITEM_VECTORS: vectors}, lambda users: (fold_in(users.known, vectors, recipe) @ vectors.T).numpy()
            )
        case CentralAls():
            simulators = Simulators(protocol.items, compiled=False)
            run = run_training(recipe, Judged.RECONSTRUCTED, opened_of(protocol), seed, simulators, _silent)
            return _reconstructing(run.simulator, dict(run.global_parameters), protocol.items)
        case FederatedChoices():
            return _train_federated(recipe, protocol, seed)


def _train_federated(recipe: FederatedChoices, protocol: Protocol, seed: int) -> Ranker:
    """Trains the implicit-feedback model by rounds."""
    model = implicit_feedback(protocol.items, recipe.factors, weight=recipe.weight, ridge=recipe.ridge, seed=seed)
    work = task_pb2.LocalWork(
        split=task_pb2.SPLIT_RULE_BY_FRACTION,
        support_fraction=0.5,
        update_schedule=plan_pb2.Schedule(batch_size=MOST_QUERIED, epochs=1, maximum_steps=1),
    )
    optimizer = task_pb2.ServerOptimizer(
        rule=task_pb2.OPTIMIZER_RULE_ADAGRAD,
        rate=recipe.server_rate,
        momentum=0.9,
        adaptivity=recipe.server_adaptivity,
    )
    # Large products, which are as fast without compiling.
    simulator = Simulator(model, work, compiled=False)
    rounds = Training(optimizer, recipe.cohort, recipe.rounds, seed, evaluate_every=recipe.rounds)
    found = train(simulator, examples_of(protocol.train), rounds).global_parameters
    one_way = sum(value.numel() * value.element_size() for value in found.values())
    return _reconstructing(simulator, found, protocol.items, one_way)


def _reconstructing(
    simulator: Simulator, global_parameters: dict[str, Tensor], items: int, one_way: int | None = None
) -> Ranker:
    """Returns the ranker that reconstructs each user's local parameters from what is known, and scores all items."""
    return Ranker(
        global_parameters, lambda users: score_items(simulator, global_parameters, users, items).numpy(), one_way
    )


def score_items(simulator: Simulator, global_parameters: dict[str, Tensor], users: Users, items: int) -> Tensor:
    """Score every item for users, after reconstruction on what is known of them.

    Args:
        simulator: of a model with one input, the item; a start of its local parameters is not drawn.
        global_parameters: by name.
        users: for whom.
        items: how many there are.

    Returns:
        `[users, items] float32`.
    """
    model = simulator.model
    starts = simulator.initial_locals(global_parameters, len(users.examples), np.random.default_rng(0))
    own = simulator.reconstruct(global_parameters, starts, users.examples, users.support)
    every = {ITEM: torch.arange(items)}

    def scores(mine: Tensors) -> Tensor:
        return model.scores({**global_parameters, **mine}, every)

    with torch.no_grad():
        parts = [
            vmap(scores)({name: value[begin : begin + USERS_AT_ONCE] for name, value in own.items()})
            for begin in range(0, len(users.examples), USERS_AT_ONCE)
        ]
    return torch.cat(parts)


def _silent(done: int, most: int, said: str) -> None:
    """Takes the progress of a run that is over in seconds."""
    del done, most, said
