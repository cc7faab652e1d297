"""A phase of a round for many clients: their steps side by side, in blocks, those who have ended left out.

Two ways, chosen by what moves:
- Where something that every step sees moves (local parameters in a reconstruction, dense parameters in an update),
  steps follow one another; clients are in order of how many they take, and each block runs those who still step.
- Where only rows move that no other step reads (a user rates an item once, and one pass is made), steps do not depend
  on one another: all steps of all clients run at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedrecon.learning.client_optimizers import initial_state
from fedrecon.learning.simulation.batches import Batches
from fedrecon.learning.simulation.examples import Positions
from fedrecon.learning.simulation.steps import Descent, Named, State, Vectorised, unrolled_steps

# Of `Descent.block`: moving, state, frozen, fields, mask and weight differ between clients; shared and rates do not.
_IN_DIMS = (0, 0, 0, 0, 0, 0, None, None)


@dataclass(frozen=True, slots=True, eq=False)
class RowMoves:
    """How far rows of a parameter moved that were each read once.

    Attributes:
        numbers: rows, `[moves] int64`.
        moves: weight times move, `[moves, ...] float32`.
        owners: the client of each, `[moves] int64`, as it stands in the chunk.
    """

    numbers: Tensor
    moves: Tensor
    owners: Tensor

    def summed(self, rows: int, counting: Tensor) -> Tensor:
        """Returns the sum of all moves of every row, `[rows, ...]`, of the clients that count."""
        moves = self.moves
        if not bool(counting.all()):
            kept = counting[self.owners].reshape(-1, *[1] * (moves.dim() - 1))
            moves = torch.where(kept, moves, 0.0)
        return sum_rows(moves, self.numbers, rows)


def sum_rows(values: Tensor, numbers: Tensor, rows: int) -> Tensor:
    """Returns the sum of the values of every row: `[moves, ...]`, `[moves]` -> `[rows, ...]`."""
    flat = values.reshape(len(values), -1)
    # The gradient of a lookup is this very sum, and the fastest way to it.
    total: Tensor = torch.ops.aten.embedding_dense_backward(flat, numbers, rows, -1, False)
    return total.reshape(rows, *values.shape[1:])


@dataclass(frozen=True, slots=True, eq=False)
class Descended:
    """What the clients of a chunk came to.

    Attributes:
        moving: parameters that every step sees, after the last, `[clients, ...]`.
        rows: moves of rows that were read once, by parameter.
        finite: whether every number of a client is, `[clients] bool`.
    """

    moving: Named
    rows: dict[str, RowMoves]
    finite: Tensor


@dataclass(slots=True, eq=False)
class Phase:
    """One phase of one model's rounds.

    Attributes:
        descent: what a client does in it.
        compiled: whether to compile.
    """

    descent: Descent
    compiled: bool
    _block: Vectorised = field(init=False)
    _unrolled: int = 0

    def __post_init__(self) -> None:
        self._block = Vectorised(self.descent.block, _IN_DIMS, self.compiled)

    def run(
        self,
        moving: Named,
        frozen: Named,
        shared: Named,
        columns: Mapping[str, Tensor],
        batches: Batches,
        clients: Positions,
        weights: Tensor,
        rates: Mapping[str, float],
    ) -> Descended:
        """Runs the phase for a chunk of clients.

        Args:
            moving: parameters that move and that every step sees, `[clients, ...]`, by name.
            frozen: the clients' own parameters that stay, the same.
            shared: parameters that all clients share.
            columns: the fields of all examples.
            batches: of all clients.
            clients: of the chunk, those with most steps first.
            weights: of the clients, `[clients] float32`.
            rates: by name.
        """
        device = weights.device
        numbers = {name: torch.tensor(value, device=device) for name, value in rates.items()}
        most = int(batches.steps[clients].max(initial=0))
        if not most:
            finite = torch.ones(len(clients), dtype=torch.bool, device=device)
            return Descended(moving, {}, finite)
        if not moving:
            return self._at_once(frozen, shared, columns, batches, clients, weights, numbers)
        return self._in_turn(moving, frozen, shared, columns, batches, clients, weights, numbers)

    def _at_once(
        self,
        frozen: Named,
        shared: Named,
        columns: Mapping[str, Tensor],
        batches: Batches,
        clients: Positions,
        weights: Tensor,
        rates: Named,
    ) -> Descended:
        steps = batches.steps[clients]
        owners = torch.from_numpy(np.repeat(np.arange(len(clients)), steps)).to(weights.device)
        chosen, running = batches.numbers(clients, 0, int(steps.max()))
        fields, mask = _read(columns, batches, chosen[running][:, None], None)
        own = {name: value[owners] for name, value in frozen.items()}
        state: State = {mover.rate: {} for mover in self.descent.movers}
        _, _, moves, finite = self._block({}, state, own, fields, mask, weights[owners], shared, rates)
        spoilt = torch.zeros(len(clients), device=weights.device).index_add_(0, owners, (~finite).float())
        return Descended({}, self._row_moves(fields, moves, owners), spoilt == 0)

    def _in_turn(
        self,
        moving: Named,
        frozen: Named,
        shared: Named,
        columns: Mapping[str, Tensor],
        batches: Batches,
        clients: Positions,
        weights: Tensor,
        rates: Named,
    ) -> Descended:
        steps = batches.steps[clients]
        moving = {name: value.clone() for name, value in moving.items()}
        state: State = {
            mover.rate: {
                name: value.expand(len(clients), *value.shape).clone()
                for name, value in initial_state(
                    mover.optimizer, {name: moving[name][0] for name in mover.names if name in moving}
                ).items()
            }
            for mover in self.descent.movers
        }
        finite = torch.ones(len(clients), dtype=torch.bool, device=weights.device)
        pieces: list[tuple[Named, Named, Tensor]] = []
        begin = 0
        while (count := int((steps > begin).sum())) > 0:
            if not self._unrolled:
                first = self._arguments(moving, state, frozen, columns, batches, clients[:1], weights, 0, 1)
                one = self._block.one((*first, shared, rates))
                self._unrolled = unrolled_steps(self.descent, one) if self.compiled else 1
            its = self._arguments(
                moving, state, frozen, columns, batches, clients[:count], weights, begin, self._unrolled
            )
            after, kept, moves, good = self._block(*its, shared, rates)
            for name, value in after.items():
                moving[name][:count] = value
            for rate, values in kept.items():
                for name, value in values.items():
                    state[rate][name][:count] = value
            finite[:count] &= good
            if moves:
                owners = torch.arange(count, device=weights.device).repeat_interleave(self._unrolled)
                pieces.append((its[3], moves, owners))
            begin += self._unrolled
        collected: dict[str, list[RowMoves]] = {}
        for fields, moves, owners in pieces:
            for name, each in self._row_moves(fields, moves, owners).items():
                collected.setdefault(name, []).append(each)
        rows = {
            name: RowMoves(
                torch.cat([each.numbers for each in parts]),
                torch.cat([each.moves for each in parts]),
                torch.cat([each.owners for each in parts]),
            )
            for name, parts in collected.items()
        }
        return Descended(moving, rows, finite)

    def _arguments(
        self,
        moving: Named,
        state: State,
        frozen: Named,
        columns: Mapping[str, Tensor],
        batches: Batches,
        clients: Positions,
        weights: Tensor,
        begin: int,
        steps: int,
    ) -> tuple[Any, ...]:
        """Returns the arguments of a block that differ between clients, for the first clients of a chunk."""
        count = len(clients)
        chosen, running = batches.numbers(clients, begin, steps)
        fields, mask = _read(columns, batches, chosen, running)
        return (
            {name: value[:count] for name, value in moving.items()},
            {rate: {name: value[:count] for name, value in values.items()} for rate, values in state.items()},
            {name: value[:count] for name, value in frozen.items()},
            fields,
            mask,
            weights[:count],
        )

    def _row_moves(self, fields: Named, moves: Named, owners: Tensor) -> dict[str, RowMoves]:
        """Returns moves of rows with the rows' numbers; `owners` has one entry for each client and step."""
        found = {}
        for name, moved in moves.items():
            parts = [fields[each].flatten(2) for each in self.descent.read_once[name]]
            numbers = torch.cat(parts, dim=2)
            per_step = numbers.shape[2]
            found[name] = RowMoves(numbers.reshape(-1), moved.flatten(0, 2), owners.repeat_interleave(per_step))
        return found


def _read(columns: Mapping[str, Tensor], batches: Batches, chosen: Positions, running: Any) -> tuple[Named, Tensor]:
    """Returns fields `[clients, steps, batch, ...]` and mask of chosen batches, `[clients, steps]`."""
    device = next(iter(columns.values())).device
    positions = torch.from_numpy(batches.positions[chosen]).to(device)
    mask = batches.mask[chosen]
    if running is not None:
        mask = mask * running[:, :, None]
    return {name: column[positions] for name, column in columns.items()}, torch.from_numpy(mask).float().to(device)
