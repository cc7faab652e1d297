"""What one client does in a phase of a round, written once for any model, as a function of tensors.

`vectorising` runs it for many clients at once. Steps of small models are unrolled several at a time, since at such
sizes a call costs more than its arithmetic.

Rules: a step whose batch is all padding changes neither parameters nor state; nothing is drawn at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value
from torch.overrides import TorchFunctionMode

from fedrecon.learning.client_optimizers import ClientOptimizer, step
from fedrecon.learning.model import FederatedModel, Tensors
from fedrecon.learning.simulation.vectorising import traced

Named = dict[str, Tensor]
State = dict[str, Named]

MOST_UNROLLED = 10
LARGEST_BLOCK_OPERATORS = 600
"""Operators in a block of unrolled steps: beyond it compiling takes minutes and a call costs little."""


@dataclass(frozen=True, slots=True)
class Mover:
    """Parameters that move together.

    Attributes:
        names: which.
        optimizer: how they follow their gradients.
        rate: name of their rate among the arguments of a block.
    """

    names: tuple[str, ...]
    optimizer: ClientOptimizer
    rate: str


@dataclass(frozen=True, slots=True)
class Descent:
    """What one client does in a phase: which parameters move, and what is minimised.

    Attributes:
        model: what is learned.
        movers: parameters that move, each in one mover.
        read_once: those of them of which a step reads rows that no other step reads, by the fields that name them.
        learns_default: whether parameters from which local ones start follow the loss at the default, too.
    """

    model: FederatedModel
    movers: tuple[Mover, ...]
    read_once: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    learns_default: bool = False

    def block(
        self,
        moving: Named,
        state: State,
        frozen: Named,
        fields: Named,
        mask: Tensor,
        weight: Tensor,
        shared: Named,
        rates: Named,
    ) -> tuple[Named, State, Named, Tensor]:
        """Takes one client's steps on some batches, one after the other.

        Args:
            moving: parameters that move and that every step sees, by name.
            state: optimizer state of every mover, by its rate.
            frozen: the client's own parameters that stay, by name.
            fields: of the batches, `[steps, batch, ...]`.
            mask: `[steps, batch] float32`.
            weight: of the client, a scalar.
            shared: parameters that all clients share: those that stay, and those that are read once.
            rates: by name, scalars.

        Returns:
            `moving` and `state` after the last step; weight times how far the rows that were read once moved,
            `[steps, rows, ...]`; whether every number is finite.
        """
        moves: dict[str, list[Tensor]] = {name: [] for name in self.read_once}
        for number in range(mask.shape[0]):
            batch = {name: column[number] for name, column in fields.items()}
            rows = {name: self._rows(name, shared[name], batch) for name in self.read_once}
            stay = {name: value for name, value in shared.items() if name not in rows}
            moved, state = self._step({**moving, **rows}, state, {**frozen, **stay}, batch, mask[number], rates)
            moving = {name: moved[name] for name in moving}
            for name, before in rows.items():
                moves[name].append((moved[name] - before) * weight)
        moved_rows = {name: torch.stack(each) for name, each in moves.items()}
        # 0 times a number that is not finite is not a number, and adding keeps that.
        spoilt = sum(((value * 0.0).sum() for value in (*moving.values(), *moved_rows.values())), torch.zeros(()))
        return moving, state, moved_rows, spoilt == 0.0

    def _rows(self, name: str, table: Tensor, batch: Named) -> Tensor:
        """Returns the rows of a parameter that a batch names, `[rows, ...]`, field by field."""
        numbers = torch.cat([batch[each].reshape(-1) for each in self.read_once[name]])
        # A lookup, since plain indexing would fix the number of clients when it is compiled.
        flat = torch.nn.functional.embedding(numbers, table.reshape(table.shape[0], -1))
        return flat.reshape(-1, *table.shape[1:])

    def _step(
        self, moving: Named, state: State, frozen: Named, fields: Named, mask: Tensor, rates: Named
    ) -> tuple[Named, State]:
        """Returns parameters and state after one step on one batch."""

        def at(variables: Named) -> Tensor:
            with _Lookups(self._renumbered(variables, fields)) as lookups:
                return self.objective(variables, frozen, lookups.fields(fields), mask)

        gradients, _ = grad_and_value(at)(moving)
        active = mask.sum() > 0
        after: Named = {}
        kept: State = {}
        for mover in self.movers:
            before = {name: moving[name] for name in mover.names}
            its = {name: gradients[name] for name in mover.names}
            moved, changed = step(mover.optimizer, before, its, state[mover.rate], rates[mover.rate])
            if changed:
                last = state[mover.rate]
                moved = {name: torch.where(active, value, before[name]) for name, value in moved.items()}
                changed = {name: torch.where(active, value, last[name]) for name, value in changed.items()}
            after |= moved
            kept[mover.rate] = changed
        return after, kept

    def objective(self, moving: Named, frozen: Named, fields: Tensors, mask: Tensor) -> Tensor:
        """Returns what is minimised over one batch."""
        loss = self._mean_loss({**frozen, **moving}, fields, mask)
        if not self.learns_default:
            return loss
        constants = {name: value.detach() for name, value in {**frozen, **moving}.items()}
        starts = {name: moving[name] for name in self.model.defaults.values()}
        at_default = self.model.at_default({**constants, **starts})
        return loss + self._mean_loss({**constants, **at_default}, fields, mask)

    def _mean_loss(self, parameters: Tensors, fields: Tensors, mask: Tensor) -> Tensor:
        return (self.model.losses(parameters, fields) * mask).sum() / mask.sum().clamp(min=1.0)

    def _renumbered(self, variables: Named, fields: Named) -> list[_Picked]:
        """Returns the rows picked for every field that names rows which are read once."""
        found: list[_Picked] = []
        for name, its_fields in self.read_once.items():
            begin = 0
            for each in its_fields:
                shape = fields[each].shape
                positions = torch.arange(begin, begin + shape.numel()).reshape(shape)
                found.append(_Picked(variables[name], each, positions, begin))
                begin += shape.numel()
        return found


@dataclass(frozen=True, slots=True, eq=False)
class _Picked:
    """Rows of a parameter that were picked for a field: from `begin` on, one after the other."""

    rows: Tensor
    field: str
    positions: Tensor
    begin: int


class _Lookups(TorchFunctionMode):
    """Reads rows that were picked for a whole field as they lie, instead of looking them up one by one.

    Their gradient is then a plain one: no rows are added up, which is many times slower.
    """

    def __init__(self, picked: Sequence[_Picked]) -> None:
        super().__init__()
        self._picked = picked

    def fields(self, fields: Named) -> Named:
        """Returns the fields, numbered by the rows that were picked."""
        return {**fields, **{each.field: each.positions for each in self._picked}}

    def __torch_function__(
        self, function: Any, types: Any, arguments: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        """Answers lookups of a whole field; everything else goes its way."""
        del types
        if function is torch.nn.functional.embedding:
            numbers, table = arguments[0], arguments[1]
            for each in self._picked:
                if table is each.rows and numbers is each.positions:
                    rows = table if numbers.numel() == len(table) else table[each.begin : each.begin + numbers.numel()]
                    return rows.reshape(*numbers.shape, *table.shape[1:])
        return function(*arguments, **(named or {}))


def unrolled_steps(descent: Descent, one_step: Sequence[Any]) -> int:
    """Returns how many steps a block shall have: more for small models.

    Args:
        descent: what a client does.
        one_step: arguments of `Descent.block` for one client and one step.
    """
    operators = len(traced(descent.block, one_step).graph.nodes)
    return max(1, min(MOST_UNROLLED, LARGEST_BLOCK_OPERATORS // operators))
