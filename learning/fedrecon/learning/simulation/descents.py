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

import numpy as np
import torch
from torch import Tensor

from fedrecon.learning.client_optimizers import initial_state
from fedrecon.learning.simulation.batches import Batches
from fedrecon.learning.simulation.examples import Positions
from fedrecon.learning.simulation.steps import Descent, Named, State, unrolled_steps
from fedrecon.learning.simulation.vectorising import Vectorised

# Of `Descent.block`: moving, state, frozen, fields, mask and weight differ between clients; shared and rates do not.
_IN_DIMS = (0, 0, 0, 0, 0, 0, None, None)


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """The examples of a schedule's batches.

    Attributes:
        batches: of all clients.
        fields: by name, `[batches, batch, ...]`.
        mask: `[batches, batch] float32`.
    """

    batches: Batches
    fields: Named
    mask: Tensor

    @classmethod
    def of(cls, columns: Mapping[str, Tensor], batches: Batches) -> Reader:
        """Returns the batches read from the fields of all examples."""
        device = next(iter(columns.values())).device
        positions = torch.from_numpy(batches.positions).to(device)
        fields = {name: column[positions] for name, column in columns.items()}
        return cls(batches, fields, torch.from_numpy(batches.mask).to(device))

    def pick(self, chosen: Positions) -> tuple[Named, Tensor]:
        """Returns fields `[..., batch, ...]` and mask `[..., batch]` of batches `[...]`."""
        numbers = torch.from_numpy(np.ascontiguousarray(chosen).reshape(-1)).to(self.mask.device)

        def picked(values: Tensor) -> Tensor:
            return values.index_select(0, numbers).reshape(*chosen.shape, *values.shape[1:])

        return {name: picked(values) for name, values in self.fields.items()}, picked(self.mask)


@dataclass(frozen=True, slots=True, eq=False)
class RowMoves:
    """How far rows of a parameter moved that were each read once.

    Attributes:
        numbers: which rows each step read, `[steps, rows] int64`.
        moves: weight times move, `[steps, rows, ...] float32`.
        owners: the client of each step, `[steps] int64`, as it stands in the chunk.
    """

    numbers: Tensor
    moves: Tensor
    owners: Tensor

    def add_to(self, total: Tensor, counting: Tensor) -> None:
        """Adds the moves of the clients that count to a sum over all rows, `[rows, ...]`."""
        moves = self.moves
        if not bool(counting.all()):
            kept = counting[self.owners].reshape(-1, *[1] * (moves.dim() - 1))
            moves = torch.where(kept, moves, 0.0)
        total.index_add_(0, self.numbers.flatten(), moves.flatten(0, 1))


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
        reader: Reader,
        clients: Positions,
        weights: Tensor,
        rates: Mapping[str, float],
    ) -> Descended:
        """Runs the phase for a chunk of clients.

        Args:
            moving: parameters that move and that every step sees, `[clients, ...]`, by name.
            frozen: the clients' own parameters that stay, the same.
            shared: parameters that all clients share.
            reader: reads the batches.
            clients: of the chunk, those with most steps first.
            weights: of the clients, `[clients] float32`.
            rates: by name.
        """
        device = weights.device
        numbers = {name: torch.tensor(value, device=device) for name, value in rates.items()}
        most = int(reader.batches.steps[clients].max(initial=0))
        if not most:
            finite = torch.ones(len(clients), dtype=torch.bool, device=device)
            return Descended(moving, {}, finite)
        if not moving:
            return self._at_once(frozen, shared, reader, clients, weights, numbers)
        return self._in_turn(moving, frozen, shared, reader, clients, weights, numbers)

    def _at_once(
        self,
        frozen: Named,
        shared: Named,
        reader: Reader,
        clients: Positions,
        weights: Tensor,
        rates: Named,
    ) -> Descended:
        steps = reader.batches.steps[clients]
        owners = torch.from_numpy(np.repeat(np.arange(len(clients)), steps)).to(weights.device)
        chosen, running = reader.batches.numbers(clients, int(steps.max()))
        fields, mask = reader.pick(chosen[running][:, None])
        own = {name: value[owners] for name, value in frozen.items()}
        state: State = {mover.rate: {} for mover in self.descent.movers}
        _, _, moves, finite = self._block({}, state, own, fields, mask, weights[owners], shared, rates)
        good = torch.ones(len(clients), dtype=torch.bool, device=weights.device)
        good[owners[~finite]] = False
        return Descended({}, self._row_moves(fields, moves, owners), good)

    def _in_turn(
        self,
        moving: Named,
        frozen: Named,
        shared: Named,
        reader: Reader,
        clients: Positions,
        weights: Tensor,
        rates: Named,
    ) -> Descended:
        steps = reader.batches.steps[clients]
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
        block = self._block_steps(moving, state, frozen, shared, reader, clients, weights, rates)
        blocks = -(-int(steps.max()) // block)
        chosen, running = reader.batches.numbers(clients, blocks * block)
        # Block by block, so that each lies in one piece.
        chosen = chosen.reshape(len(clients), blocks, block).swapaxes(0, 1)
        running = running.reshape(len(clients), blocks, block).swapaxes(0, 1)
        fields, mask = reader.pick(chosen)
        mask *= torch.from_numpy(running[:, :, :, None]).to(mask.device)
        moved: dict[str, list[RowMoves]] = {}
        for number in range(blocks):
            count = int((steps > number * block).sum())
            read = {name: column[number, :count] for name, column in fields.items()}
            after, kept, moves, good = self._block(
                {name: value[:count] for name, value in moving.items()},
                {rate: {name: value[:count] for name, value in its.items()} for rate, its in state.items()},
                {name: value[:count] for name, value in frozen.items()},
                read,
                mask[number, :count],
                weights[:count],
                shared,
                rates,
            )
            if count == len(clients):
                moving = after
            else:
                for name, value in after.items():
                    moving[name][:count] = value
            for rate, values in kept.items():
                for name, value in values.items():
                    state[rate][name][:count] = value
            finite[:count] &= good
            if moves:
                owners = torch.arange(count, device=weights.device).repeat_interleave(block)
                for name, each in self._row_moves(read, moves, owners).items():
                    moved.setdefault(name, []).append(each)
        return Descended(moving, {name: _joined(parts) for name, parts in moved.items()}, finite)

    def _block_steps(
        self,
        moving: Named,
        state: State,
        frozen: Named,
        shared: Named,
        reader: Reader,
        clients: Positions,
        weights: Tensor,
        rates: Named,
    ) -> int:
        """Returns how many steps a block has: several of a small model, where they are compiled."""
        if not self.compiled:
            return 1
        if not self._unrolled:
            chosen, _ = reader.batches.numbers(clients[:1], 1)
            fields, mask = reader.pick(chosen)
            one = self._block.one((moving, state, frozen, fields, mask, weights, shared, rates))
            self._unrolled = unrolled_steps(self.descent, one)
        return self._unrolled

    def _row_moves(self, fields: Named, moves: Named, owners: Tensor) -> dict[str, RowMoves]:
        """Returns moves of rows with the rows' numbers; `owners` has one entry for each client and step."""
        found = {}
        for name, moved in moves.items():
            parts = [fields[each].flatten(2) for each in self.descent.read_once[name]]
            numbers = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
            found[name] = RowMoves(numbers.flatten(0, 1), moved.flatten(0, 1), owners)
        return found


def _joined(parts: list[RowMoves]) -> RowMoves:
    return RowMoves(
        torch.cat([each.numbers for each in parts]),
        torch.cat([each.moves for each in parts]),
        torch.cat([each.owners for each in parts]),
    )
