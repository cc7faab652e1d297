"""Ridge reconstruction of many clients at once.

The design matrix is read off the model: row i is the gradient of score i with respect to the local parameters, which
for a linear model is the same everywhere. Clients are taken in order of their numbers of examples, a few at a time,
so that padding costs little; the normal equations are solved by Cholesky's method. Large products, little else: there
is nothing to gain from compiling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from fedrecon.learning.model import FederatedModel, Tensors
from fedrecon.learning.reconstruction import Ridge
from fedrecon.learning.simulation.batches import Half
from fedrecon.learning.simulation.examples import ClientExamples, Positions
from fedrecon.learning.simulation.steps import Named

CHUNK_ELEMENTS = 1 << 20
"""Of the design matrices of clients side by side: 4 MiB, which stays in the processor's cache."""


@dataclass(frozen=True, slots=True)
class Solver:
    """Solves for the local parameters of a model that is linear in them.

    Attributes:
        model: whose reconstruction is `Ridge`.
    """

    model: FederatedModel

    def solve(
        self,
        global_parameters: Tensors,
        starts: Named,
        examples: ClientExamples,
        support: Half,
        members: Positions,
        ridge: float,
    ) -> Named:
        """Returns local parameters, `[clients, ...]`, by name.

        Args:
            global_parameters: the checkpoint, by name.
            starts: where the ridge pulls, `[clients, ...]`, by name.
            examples: of all clients.
            support: the examples to fit.
            members: the clients among those of `support`, in the order of `starts`.
            ridge: weight of the squared distance from `starts`.
        """
        reconstruction = self.model.reconstruction
        if not isinstance(reconstruction, Ridge):
            raise TypeError(f"model {self.model.name!r} is not reconstructed by ridge")
        found = {name: value.clone() for name, value in starts.items()}
        widths = [math.prod(value.shape[1:]) for value in starts.values()]
        background = reconstruction.background
        pull = None
        if background is not None:
            pull = background.precision(global_parameters, dict(zip(starts, widths, strict=True)))
        counts = support.counts[members]
        order = np.argsort(counts, kind="stable")
        order = order[counts[order] > 0]
        begin = 0
        while begin < len(order):
            end = _end(counts[order], begin, sum(widths))
            rows = order[begin:end]
            positions, mask = support.padded(members[rows])
            fields = {name: column[torch.from_numpy(positions)] for name, column in examples.fields.items()}
            picked = torch.from_numpy(rows)
            own = {name: value[picked] for name, value in starts.items()}
            design, score = vmap(self._linearised, in_dims=(0, 0, None))(own, fields, dict(global_parameters))
            used = torch.from_numpy(mask).to(design.device)
            masked = design * used.unsqueeze(2)
            residual = fields[reconstruction.target] - score
            normal = masked.mT @ design + ridge * torch.eye(sum(widths), device=design.device)
            right = masked.mT @ residual.unsqueeze(2)
            if pull is not None:
                pulls = used.sum(1)[:, None, None] * pull
                origin = torch.cat([value.reshape(len(rows), -1) for value in own.values()], dim=1)
                normal, right = normal + pulls, right - pulls @ origin.unsqueeze(2)
            change = torch.cholesky_solve(right, torch.linalg.cholesky(normal)).squeeze(2)
            pieces = torch.split(change, widths, dim=1)
            for (name, value), piece in zip(own.items(), pieces, strict=True):
                found[name][picked] = value + piece.reshape(value.shape)
            begin = end
        return found

    def _linearised(self, start: Named, fields: Named, global_parameters: Named) -> tuple[Tensor, Tensor]:
        """Returns one client's design matrix `[examples, width]` and its scores at the start, `[examples]`."""

        def score_one(variables: Named, example: Named) -> tuple[Tensor, Tensor]:
            alone = {name: value.unsqueeze(0) for name, value in example.items()}
            score = self.model.scores({**global_parameters, **variables}, alone).reshape(())
            return score, score

        inputs = {each.name: fields[each.name] for each in self.model.inputs}
        gradients, score = vmap(grad(score_one, has_aux=True), in_dims=(None, 0))(start, inputs)
        flat = [gradient.reshape(gradient.shape[0], -1) for gradient in gradients.values()]
        return torch.cat(flat, dim=1), score


def _end(counts: Positions, begin: int, width: int) -> int:
    """Returns the end of a chunk of clients, sorted by their counts, whose padded design matrices fit."""
    sizes = counts[begin:] * (np.arange(len(counts) - begin) + 1) * width
    return begin + max(int(np.searchsorted(sizes, CHUNK_ELEMENTS, side="right")), 1)
