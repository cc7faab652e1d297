"""One client's function for many clients at once: traced, vectorised, and compiled for any number of clients.

The function is traced into plain operators (so that no autograd runs later), vectorised over the clients
(`torch.func.vmap`), and compiled by torch's own compiler for a varying first extent. It is handed to the compiler
directly: what `torch.compile` does around it (looking at Python code, checking every argument at every call) costs
more than ten steps of a small model for a hundred clients.

Rules: clients are the first axis of whatever differs between them; every other extent is fixed for a compiled
function, and another form of arguments makes another one. Where there is no C++ compiler, or where the compiler cannot
take an operator, the same function runs eagerly, several times slower, and a warning says so.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils import _pytree as trees

from fedrecon.learning.simulation.operators import dissolved

CLIENTS_AT_COMPILATION = 97
"""An extent that no other axis is likely to have; the compiler plans loops for about so many clients."""

Run = Callable[[Sequence[Tensor]], Any]


@dataclass(slots=True, eq=False)
class Vectorised:
    """A client's function over many clients; traced and compiled once for each form of its arguments.

    Attributes:
        function: of one client; takes mappings of tensors, or tensors, always of the same names.
        in_dims: 0 for arguments that differ between clients, None for those that all share.
        compiled: whether to compile.
    """

    function: Callable[..., Any]
    in_dims: tuple[int | None, ...]
    compiled: bool
    _made: dict[Any, Run] = field(default_factory=dict)

    def __call__(self, *arguments: Any) -> Any:
        """Returns the function of all clients, each result with the clients as its first axis."""
        leaves = [leaf for argument in arguments for leaf in _leaves(argument)]
        form = tuple((leaf.shape[1:], leaf.stride(), leaf.dtype) if leaf.dim() else leaf.dtype for leaf in leaves)
        if form not in self._made:
            self._made[form] = self._make(arguments)
        return self._made[form](leaves)

    def one(self, arguments: Sequence[Any]) -> list[Any]:
        """Returns the arguments of the first client."""
        pairs = zip(arguments, self.in_dims, strict=True)
        return [trees.tree_map(lambda leaf: leaf[0], each) if dim is not None else each for each, dim in pairs]

    def _make(self, arguments: Sequence[Any]) -> Run:
        """Returns the function of all clients for arguments of this form, as a list."""
        mapped = vmap(traced(self.function, self.one(arguments)), in_dims=self.in_dims)
        _, form = trees.tree_flatten(tuple(arguments))

        def run(leaves: Sequence[Tensor]) -> Any:
            return mapped(*trees.tree_unflatten(leaves, form))

        if not self.compiled:
            return run
        pairs = zip(arguments, self.in_dims, strict=True)
        leaves = [(leaf, dim is not None) for argument, dim in pairs for leaf in _leaves(argument)]
        try:
            return _compile(run, leaves)
        except Exception as error:  # noqa: BLE001 the compiler raises many kinds, and running eagerly is always right
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            warnings.warn(
                f"torch cannot compile these steps, which run eagerly and several times slower: {reason}",
                RuntimeWarning,
                stacklevel=2,
            )
            return run


def traced(function: Callable[..., Any], arguments: Sequence[Any]) -> torch.fx.GraphModule:
    """Returns a function as plain operators, for arguments of these shapes."""

    # The tracer would count `self` among the arguments of a method.
    def plain(*values: Any) -> Any:
        return function(*values)

    graph = make_fx(plain, decomposition_table=dissolved)(*arguments)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _compile(run: Run, leaves: Sequence[tuple[Tensor, bool]]) -> Run:
    """Returns a function compiled for any number of clients.

    Args:
        run: takes a list of tensors.
        leaves: such tensors, and whether the first axis is the clients.

    Raises:
        ValueError: an operator fixes the number of clients.
    """
    environment = ShapeEnv()
    mode = FakeTensorMode(shape_env=environment)
    stand_ins = [_stand_in(mode, leaf, varies, number) for number, (leaf, varies) in enumerate(leaves)]
    forms: list[Any] = []

    def flat(*tensors: Tensor) -> tuple[Any, ...]:
        results, form = trees.tree_flatten(run(tensors))
        forms[:] = [form]
        return tuple(results)

    compiler = logging.getLogger("torch._inductor")
    level = compiler.level
    compiler.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecations, some when it is imported
            from torch._inductor.compile_fx import compile_fx_inner
            from torch._inductor.decomposition import select_decomp_table

            with mode:
                graph = make_fx(flat, decomposition_table=select_decomp_table())(*stand_ins)
            if environment.replacements:
                raise ValueError("an operator fixes the number of clients")
            compiled: Any = compile_fx_inner(graph, stand_ins, is_inference=True)
    finally:
        compiler.setLevel(level)
    (form,) = forms
    # Neither torch's look at its profiler and caches nor its general way to rebuild a form: either takes as long as
    # a step of a small model.
    kernel = compiled.current_callable

    def call(tensors: Sequence[Tensor]) -> Any:
        return _rebuilt(form, iter(kernel(list(tensors))))

    return call


def _rebuilt(form: trees.TreeSpec, leaves: Iterator[Tensor]) -> Any:
    """Returns nested mappings and tuples with these leaves."""
    if form.is_leaf():
        return next(leaves)
    parts = [_rebuilt(child, leaves) for child in form.children()]
    return dict(zip(form.context, parts, strict=True)) if form.type is dict else tuple(parts)


def _stand_in(mode: FakeTensorMode, leaf: Tensor, varies: bool, number: int) -> Tensor:
    """Returns a tensor without content for the compiler: of any number of clients where that varies."""
    extents = [DimDynamic.STATIC] * leaf.dim()
    if varies:
        extents[0] = DimDynamic.DUCK
        leaf = leaf.new_empty((CLIENTS_AT_COMPILATION, *leaf.shape[1:]))
    context: Any = StatelessSymbolicContext(dynamic_sizes=extents, constraint_sizes=[None] * leaf.dim())
    made: Tensor = mode.from_tensor(leaf, source=ConstantSource(f"input_{number}"), symbolic_context=context)
    return made


def _leaves(argument: Any) -> Iterable[Tensor]:
    """Yields the tensors of nested mappings, in order."""
    if isinstance(argument, Tensor):
        yield argument
    else:
        for value in argument.values():
            yield from _leaves(value)


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
