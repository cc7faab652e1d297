"""Gradient steps of many clients at once: one client's steps as a function, vectorised, and compiled where possible.

One client's part is written once, for any model, as a function of tensors; it is traced into plain operators (so that
no autograd runs later), vectorised over the clients (`torch.func.vmap`) and compiled. Steps of small models are
unrolled several at a time, since at such sizes a call costs more than its arithmetic.

Rules: clients are the first axis of whatever differs between them; extents but the number of clients are fixed for a
compiled function. A step whose batch is all padding changes neither parameters nor state. Where there is no C++
compiler, or where the compiler cannot take an operator, the same functions run eagerly, and a warning says so.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from fedrecon.learning.client_optimizers import ClientOptimizer, step
from fedrecon.learning.model import FederatedModel, Tensors
from fedrecon.learning.simulation.operators import dissolved

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

        def objective(variables: Named) -> Tensor:
            with _Lookups(self._renumbered(variables, fields)) as lookups:
                return self._objective(variables, frozen, lookups.fields(fields), mask)

        gradients, _ = grad_and_value(objective)(moving)
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

    def _objective(self, moving: Named, frozen: Named, fields: Tensors, mask: Tensor) -> Tensor:
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


@dataclass(slots=True, eq=False)
class Vectorised:
    """A client's function over many clients; traced and compiled once for each form of its arguments.

    Attributes:
        function: of one client; takes mappings of tensors, or tensors.
        in_dims: 0 for arguments that differ between clients, None for those that all share.
        compiled: whether to compile.
    """

    function: Callable[..., Any]
    in_dims: tuple[int | None, ...]
    compiled: bool
    _traced: dict[Any, Callable[..., Any]] = field(default_factory=dict)
    _made: dict[Any, Callable[..., Any]] = field(default_factory=dict)

    def __call__(self, *arguments: Any) -> Any:
        """Returns the function of all clients, each result with the clients as its first axis."""
        form = self._form(arguments)
        if form not in self._traced:
            self._traced[form] = vmap(traced(self.function, self.one(arguments)), in_dims=self.in_dims)
        # The compiler takes an extent of 1 for a constant.
        if not self.compiled or self._clients(arguments) == 1:
            return self._traced[form](*arguments)
        if form not in self._made:
            self._made[form] = self._compile_or_not(self._traced[form], arguments)
        return self._made[form](*arguments)

    def one(self, arguments: Sequence[Any]) -> list[Any]:
        """Returns the arguments of the first client."""
        pairs = zip(arguments, self.in_dims, strict=True)
        return [_map(lambda leaf: leaf[0], each) if dim is not None else each for each, dim in pairs]

    def _compile_or_not(self, mapped: Callable[..., Any], arguments: Sequence[Any]) -> Callable[..., Any]:
        """Returns the function compiled; as it is, with a warning, where torch cannot compile it."""
        compiler = logging.getLogger("torch._guards")
        level = compiler.level
        compiler.setLevel(logging.CRITICAL)  # it would print its own reasons, a page for each
        try:
            return self._compile(mapped, arguments)
        except Exception as error:  # noqa: BLE001 the compiler raises many kinds, and running eagerly is always right
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            warnings.warn(
                f"torch cannot compile these steps, which run eagerly and several times slower: {reason}",
                RuntimeWarning,
                stacklevel=2,
            )
            return mapped
        finally:
            compiler.setLevel(level)

    def _compile(self, mapped: Callable[..., Any], arguments: Sequence[Any]) -> Callable[..., Any]:
        """Returns a function compiled for any number of clients, and otherwise for arguments of just this form."""
        for argument, dimension in zip(arguments, self.in_dims, strict=True):
            if dimension is not None:
                for tensor in _leaves(argument):
                    torch._dynamo.mark_dynamic(tensor, 0)  # noqa: SLF001 its documented name
        # The form is checked before every call; torch's own checks cost more than a step of a small model.
        options: dict[str, Any] = {"guard_filter_fn": lambda guards: [False] * len(guards)}
        # Ahead of time: torch keeps what it compiles in time by code, and all vectorised functions have the same.
        compilable: Any = torch.compile(mapped, fullgraph=True, options=options)
        compiled: Callable[..., Any] = compilable.aot_compile((tuple(arguments), {}))
        return compiled

    def _clients(self, arguments: Sequence[Any]) -> int:
        """Returns the extent of the first axis of whatever differs between clients."""
        different = (each for each, dim in zip(arguments, self.in_dims, strict=True) if dim is not None)
        return next(leaf.shape[0] for argument in different for leaf in _leaves(argument))

    def _form(self, arguments: Sequence[Any]) -> Any:
        """Returns names, types, devices, shapes and strides of the arguments, less the number of clients."""
        return tuple(_form(each, dim) for each, dim in zip(arguments, self.in_dims, strict=True))


def _leaves(argument: Any) -> list[Tensor]:
    if isinstance(argument, Tensor):
        return [argument]
    return [leaf for value in argument.values() for leaf in _leaves(value)]


def _map(function: Callable[[Tensor], Tensor], argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return function(argument)
    return {name: _map(function, value) for name, value in argument.items()}


def _form(argument: Any, dimension: int | None) -> Any:
    if isinstance(argument, Tensor):
        shape = argument.shape if dimension is None else argument.shape[1:]
        return argument.dtype, argument.device, shape, argument.stride()
    return tuple((name, _form(value, dimension)) for name, value in argument.items())


def traced(function: Callable[..., Any], arguments: Sequence[Any]) -> torch.fx.GraphModule:
    """Returns a function as plain operators, for arguments of these shapes."""

    # The tracer would count `self` among the arguments of a method.
    def plain(*values: Any) -> Any:
        return function(*values)

    graph = make_fx(plain, decomposition_table=dissolved)(*arguments)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def unrolled_steps(descent: Descent, one_step: Sequence[Any]) -> int:
    """Returns how many steps a block shall have: more for small models.

    Args:
        descent: what a client does.
        one_step: arguments of `Descent.block` for one client and one step.
    """
    operators = len(traced(descent.block, one_step).graph.nodes)
    return max(1, min(MOST_UNROLLED, LARGEST_BLOCK_OPERATORS // operators))


def can_compile(device: torch.device) -> bool:
    """Returns whether there is a compiler; warns where there is none."""
    if device.type != "cpu" or any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return True
    warnings.warn(
        "no C++ compiler (g++) found: the simulation runs eagerly, several times slower; on Debian: "
        "apt-get install g++",
        RuntimeWarning,
        stacklevel=2,
    )
    return False
