"""Client optimizers against torch's own, step by step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fedrecon.learning.client_optimizers import Adagrad, Adam, ClientOptimizer, Sgd, initial_state, step

peers: dict[str, tuple[ClientOptimizer, Callable[[list[Tensor]], torch.optim.Optimizer]]] = {
    "sgd": (Sgd(), lambda values: torch.optim.SGD(values, lr=0.1)),
    "momentum": (Sgd(momentum=0.9), lambda values: torch.optim.SGD(values, lr=0.1, momentum=0.9)),
    "adagrad": (
        Adagrad(initial_accumulator=0.1, epsilon=1e-5),
        lambda values: torch.optim.Adagrad(values, lr=0.1, initial_accumulator_value=0.1, eps=1e-5),
    ),
    "adam": (
        Adam(momentum=0.8, second_momentum=0.95, epsilon=1e-6),
        lambda values: torch.optim.Adam(values, lr=0.1, betas=(0.8, 0.95), eps=1e-6),
    ),
}


@pytest.mark.parametrize("name", peers)
def test_ten_steps_are_those_of_torch(name: str) -> None:
    optimizer, make = peers[name]
    generator = torch.Generator().manual_seed(1)
    ours = {"a": torch.randn(3, 2, generator=generator), "b": torch.randn((), generator=generator)}
    theirs = {key: value.clone().requires_grad_() for key, value in ours.items()}
    peer = make(list(theirs.values()))
    state = initial_state(optimizer, ours)
    for _ in range(10):
        gradients = {key: torch.randn(value.shape, generator=generator) for key, value in ours.items()}
        ours, state = step(optimizer, ours, gradients, state, torch.tensor(0.1))
        for key, value in theirs.items():
            value.grad = gradients[key].clone()
        peer.step()
    for key, value in theirs.items():
        assert torch.allclose(ours[key], value, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_first_steps_of_adam_lose_nothing_to_its_weights(steps: int) -> None:
    """1 - 0.999^t in 32 bits would put them off by 7e-6."""
    ours = {"a": torch.zeros(100)}
    theirs = torch.zeros(100, requires_grad=True)
    optimizer, peer = Adam(), torch.optim.Adam([theirs], lr=0.1, eps=1e-7)
    state = initial_state(optimizer, ours)
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        theirs.grad = torch.randn(100, generator=generator)
        ours, state = step(optimizer, ours, {"a": theirs.grad.clone()}, state, torch.tensor(0.1))
        peer.step()
    expected = theirs.detach()
    assert float((ours["a"] - expected).abs().max() / expected.abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sgd(momentum=1.0), "momentum must be at least 0 and below 1, not 1.0"),
        (lambda: Adagrad(initial_accumulator=-1.0), "initial_accumulator >= 0"),
        (lambda: Adagrad(epsilon=0.0), "epsilon > 0"),
        (lambda: Adam(second_momentum=-0.1), "second_momentum must be at least 0"),
        (lambda: Adam(epsilon=0.0), "Adam needs epsilon > 0"),
    ],
)
def test_numbers_that_cannot_work_are_refused(make: Callable[[], ClientOptimizer], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
