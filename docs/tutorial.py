"""The code of `tutorial.md`, cell by cell: `python docs/tutorial.py`, or as a notebook in any editor that knows `# %%`.

`--quick` runs everything in seconds on very few ratings; `--data FOLDER` takes MovieLens 1M from the folder's `ml-1m/`.
"""
# ruff: noqa: ANN001, ANN003, ANN201, ANN202, ANN204, D102, E402, T201
# Code of a page to read from top to bottom: it imports where it needs, prints, and leaves out what readers skip.

# %% Options
import argparse
import os
from pathlib import Path

import torch

options = argparse.ArgumentParser()
options.add_argument("--data", type=Path, default=os.environ.get("FEDRECON_DATA"))
options.add_argument("--figures", type=Path, default=Path("tutorial-figures"))
options.add_argument("--quick", action="store_true")
chosen, _ = options.parse_known_args()  # a notebook has arguments of its own

DATA, FIGURES, QUICK = chosen.data, chosen.figures, chosen.quick
FIGURES.mkdir(parents=True, exist_ok=True)
torch.set_num_threads(1)  # small tensors: a second thread costs more than it brings

# %% Ratings
from fedrecon.datasets import generate, load

if DATA:
    ratings = load(DATA / "ml-1m")
elif QUICK:
    ratings = generate(users=120, items=80, seed=1)
else:
    ratings = generate(users=1500, items=600, seed=1)
print(f"{len(ratings):,} ratings of {len(ratings.item_keys):,} films by {len(ratings.user_keys):,} users")

# %% What the ratings look like
import numpy as np
from matplotlib.figure import Figure


def bare(axes, title, x_label):
    """Leaves a chart its bars, its labels and a light grid."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(x_label, fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", color="#E4E4E4")
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8.5)
    axes.yaxis.set_major_formatter("{x:,g}")


figure = Figure(figsize=(10.8, 3.4), dpi=160, layout="constrained")
left, middle, right = figure.subplots(1, 3)

stars, counts = np.unique(ratings.ratings, return_counts=True)
left.bar(stars, counts, width=0.8 * np.diff(stars).min(), color="#0072B2")
left.set_xticks(stars)
bare(left, "ratings", "stars")

per_user = ratings.ratings_per_user()
middle.hist(per_user, bins=30, color="#0072B2")
middle.axvline(np.median(per_user), color="#D55E00")
middle.annotate(f" median {np.median(per_user):g}", (np.median(per_user), middle.get_ylim()[1]), va="top", fontsize=8.5)
bare(middle, "users", "ratings of a user")

right.plot(np.sort(ratings.ratings_per_item())[::-1], color="#0072B2")
right.set_ylim(0)
bare(right, "ratings of a film", "films, the most rated first")
figure.savefig(FIGURES / "tutorial-ratings.png")

# %% Genres
from collections import Counter


def genres_of(folder):
    """Returns the genres of every film in MovieLens 1M, by its key."""
    rows = (line.split("::") for line in (folder / "movies.dat").read_text("latin-1").splitlines())
    return {key: names.split("|") for key, _, names in rows}


if DATA:
    genres = genres_of(DATA / "ml-1m")
    rated = Counter()
    for key, count in zip(ratings.item_keys, ratings.ratings_per_item().tolist(), strict=True):
        rated.update(dict.fromkeys(genres[key], count))
    names, counts = zip(*reversed(rated.most_common()), strict=True)
    figure = Figure(figsize=(5.4, 4.2), dpi=160, layout="constrained")
    axes = figure.subplots()
    axes.barh(names, counts, color="#0072B2")
    bare(axes, "ratings by genre of the film", "ratings")
    axes.grid(visible=False, axis="y")
    axes.yaxis.set_major_formatter(lambda _, place: names[place])
    axes.xaxis.set_major_formatter("{x:,g}")
    figure.savefig(FIGURES / "tutorial-genres.png")

# %% Users who train, and users who do not
from fedrecon.datasets import cap_ratings, split_users
from fedrecon.learning.simulation import ClientExamples

positions = ratings.by_user()


def clients_of(users):
    """Returns the examples of some users: at most 300 each, in a fixed random order."""
    clients = []
    for user in users.tolist():
        kept = positions[user][cap_ratings(len(positions[user]), user)]
        clients.append({"item": ratings.items[kept], "rating": ratings.ratings[kept]})
    return ClientExamples.from_clients(clients)


parts = split_users(len(ratings.user_keys))
training_users, validation_users = clients_of(parts.train), clients_of(parts.validation)
unseen_users = clients_of(parts.test)
print(f"{len(training_users)} users train, {len(validation_users)} choose, {len(unseen_users)} judge")

# %% The model
from fedrecon.learning.models.matrix_factorization import matrix_factorization

model = matrix_factorization(items=len(ratings.item_keys), factors=10)
print("global:", {name: list(value.shape) for name, value in model.global_parameters.items()})
print("local: ", {name: list(value.shape) for name, value in model.local_parameters.items()})

# %% What a device does
from fedrecon.learning.simulation import Simulator
from fedrecon.v1.task_pb2 import SPLIT_RULE_ALTERNATE_BATCHES, LocalWork

work = LocalWork(split=SPLIT_RULE_ALTERNATE_BATCHES)
simulator = Simulator(model, work, compiled=not QUICK)

# %% Training
import math

from fedrecon.learning.simulation import Training, Validation, train
from fedrecon.v1.task_pb2 import OPTIMIZER_RULE_SGD, ServerOptimizer


def rmse(evaluation):
    """Returns the root of the mean squared error over all query ratings, in stars."""
    return math.sqrt(evaluation.mean("squared_error"))


training = Training(
    ServerOptimizer(rule=OPTIMIZER_RULE_SGD, rate=1.0),
    cohort_size=10 if QUICK else 100,
    rounds=6 if QUICK else 400,
    evaluate_every=2 if QUICK else 20,
)
validation = Validation(simulator, validation_users, loss=rmse)
trained = train(simulator, training_users, training, validation)
best = min(trained.history, key=lambda point: point.loss)
print(f"best on validation users after round {best.round}: RMSE {best.loss:.3f}")

# %% Curves
from fedrecon.learning.experiments.charts import Line, Panel, draw_lines


def draw_curves(runs, title, name):
    """Draws RMSE and accuracy of runs on validation users, round by round."""
    curves = {label: run.history for label, run in runs.items()}

    def lines(value_of):
        return tuple(
            Line(label, [each.round for each in curve], [value_of(each) for each in curve], marked=False)
            for label, curve in curves.items()
        )

    panels = [
        Panel("RMSE in stars", "rounds", lines(lambda each: each.loss)),
        Panel("within half a star", "rounds", lines(lambda each: 100 * each.metrics["within_half"]), percent=True),
    ]
    draw_lines(panels, title, "validation users: reconstructed on one half, measured on the other", FIGURES / name)


draw_curves({"SGD": trained}, "Users who never trained are served better round by round", "tutorial-curves.png")

# %% RECON EVAL
from fedrecon.learning.simulation import evaluate


def tell(label, evaluation):
    """Prints the two figures of an evaluation."""
    print(f"{label:34} RMSE {rmse(evaluation):.3f}   within half a star {evaluation.mean('within_half'):5.1%}")


tell("unseen users", evaluate(simulator, trained.global_parameters, unseen_users))

# %% What it must beat
from itertools import pairwise

support, query = simulator.halves(unseen_users, np.arange(len(unseen_users)), np.random.default_rng(0))
stars = unseen_users.fields["rating"].numpy()
means = [stars[support.positions[start:end]].mean() for start, end in pairwise(support.offsets)]
errors = stars[query.positions] - np.repeat(means, query.counts)
print(f"{'every user at their own mean':34} RMSE {np.sqrt(np.square(errors).mean()):.3f}")

# %% Why the halves must not overlap
from fedrecon.learning.simulation.evaluation import measure
from fedrecon.v1.task_pb2 import SPLIT_RULE_NONE

starts = simulator.initial_locals(trained.global_parameters, len(unseen_users), np.random.default_rng(0))
user_vectors = simulator.reconstruct(trained.global_parameters, starts, unseen_users, support)
for label, half in {"the half it was fitted to": support, "the other half": query}.items():
    tell(label, measure(simulator, trained.global_parameters, user_vectors, unseen_users, half))

try:
    evaluate(Simulator(model, LocalWork(split=SPLIT_RULE_NONE), compiled=False), model.global_parameters, unseen_users)
except ValueError as refusal:
    print(refusal)

# %% Other halves
from dataclasses import replace

from fedrecon.v1.task_pb2 import SPLIT_RULE_BY_FRACTION


def train_with(**changed):
    """Trains the same model with other local work; judged as before."""
    changed = LocalWork(**({"split": SPLIT_RULE_ALTERNATE_BATCHES} | changed))
    return train(replace(simulator, work=changed), training_users, training, validation)


runs = {
    "alternate batches": trained,
    "fresh halves": train_with(split=SPLIT_RULE_BY_FRACTION, support_fraction=0.5),
}
for label, run in runs.items():
    tell(label, evaluate(simulator, run.global_parameters, unseen_users))

# %% Exercise 1: fewer steps
from fedrecon.v1.plan_pb2 import Schedule

runs["3 epochs"] = train_with(
    reconstruct_schedule=Schedule(batch_size=5, epochs=3, maximum_steps=50),
    update_schedule=Schedule(batch_size=5, epochs=1, maximum_steps=50),
)
tell("3 epochs of reconstruction", evaluate(simulator, runs["3 epochs"].global_parameters, unseen_users))

# %% Exercise 2: every rating used twice
runs["no split"] = train_with(split=SPLIT_RULE_NONE)
tell("no split in training", evaluate(simulator, runs["no split"].global_parameters, unseen_users))
draw_curves(runs, "What support and query are, and how long a device works", "tutorial-splits.png")

# %% Exercise 3: a model of your own
from fedrecon.learning.model import Constant, FederatedModel, Field, Metric, Role
from fedrecon.learning.models.matrix_factorization import squared_error, within_half
from fedrecon.learning.reconstruction import GradientSteps, Hyperparameter


class Mixed(torch.nn.Module):
    """Ratings from a film's vector and a taste, mixed by a small network that everybody shares."""

    def __init__(self, films, factors=8, hidden=16):
        super().__init__()
        self.films = torch.nn.Embedding(films, factors)  # global: one row for every film
        self.network = torch.nn.Sequential(  # global
            torch.nn.Linear(2 * factors, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 1)
        )
        self.taste = torch.nn.Parameter(torch.zeros(factors))  # local
        self.generosity = torch.nn.Parameter(torch.zeros(()))  # local: stars that this user adds to all
        torch.nn.init.normal_(self.films.weight, std=0.3)
        torch.nn.init.constant_(self.network[2].bias, 3.5)

    def forward(self, item):
        film = self.films(item)
        mixed = torch.cat([film, film * self.taste], dim=1)
        return self.network(mixed).squeeze(-1) + self.generosity


torch.manual_seed(0)
mixed = FederatedModel(
    name="mixed",
    module=Mixed(len(ratings.item_keys)),
    local={"taste": Constant(0.0), "generosity": Constant(0.0)},
    fields=(
        Field("item", dtype=torch.int64, vocabulary="items"),
        Field("rating", Role.TARGET, minimum=0.5, maximum=5.0),
    ),
    loss=squared_error,
    metrics={"squared_error": Metric(squared_error, bound=25.0), "within_half": Metric(within_half, bound=1.0)},
    bounds={
        "films.weight": 0.5,
        "network.0.weight": 0.5,
        "network.0.bias": 0.5,
        "network.2.weight": 0.5,
        "network.2.bias": 0.5,
    },
    vocabularies={"films.weight": "items"},
    reconstruction=GradientSteps(rate=Hyperparameter(0.1, 0.0, 0.1)),
    update_rate=Hyperparameter(0.1, 0.0, 0.1),
)

# %% Trained by the same call
from fedrecon.v1.task_pb2 import OPTIMIZER_RULE_ADAGRAD

mixing = Simulator(mixed, work, compiled=not QUICK)
adaptive = replace(training, optimizer=ServerOptimizer(rule=OPTIMIZER_RULE_ADAGRAD, rate=0.1, adaptivity=1e-3))
trained_mixed = train(mixing, training_users, adaptive, Validation(mixing, validation_users, loss=rmse))
tell("a model of one's own", evaluate(mixing, trained_mixed.global_parameters, unseen_users))

# %% From simulation to devices
from tempfile import mkdtemp

from fedrecon.learning.planning import compile_plan, generate_key, read_key
from fedrecon.v1.plan_pb2 import Vocabulary

mixed.module.load_state_dict(trained_mixed.global_parameters, strict=False)  # locals stay as they start
folder = Path(mkdtemp())
generate_key(folder / "publisher.pem")
films = Vocabulary(name="items", version=1, keys=ratings.item_keys)
compiled = compile_plan(mixed, {"items": films}, read_key(folder / "publisher.pem"), folder / "plan")
print(f"plan {compiled.digest.hex()[:16]} in {compiled.path}: within {compiled.largest_difference:.0e} of torch")
