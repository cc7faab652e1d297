"""The oracle itself: checked by hand, since plans are checked by it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedrecon.learning.model import FederatedModel
from fedrecon.learning.models.matrix_factorization import matrix_factorization
from fedrecon.learning.reconstruction import RECONSTRUCT_RATE, RECONSTRUCT_RIDGE, UPDATE_RATE, Ridge
from fedrecon.learning.reference import Steps, client_update, solve_ridge

ITEMS = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
fields = {"item": torch.tensor([0, 1, 2, 1]), "rating": torch.tensor([4.0, 2.0, 3.0, 5.0])}
globals_ = {"item_vectors.weight": ITEMS}


def steps(*batches: list[int]) -> Steps:
    order = torch.tensor(batches, dtype=torch.int64).reshape(len(batches), -1)
    return Steps(order, torch.ones(order.shape))


def rates(*values: float) -> Tensor:
    return torch.tensor(values)


@pytest.fixture
def model() -> FederatedModel:
    return matrix_factorization(3, 2)


def test_one_step_is_the_gradient_by_hand(model: FederatedModel) -> None:
    """rating 4 of item (1, 0) by user (1, 1): error -3, so user += 0.1 * 2 * 3 * item."""
    initial = {"user_vector": torch.tensor([1.0, 1.0])}
    numbers = {RECONSTRUCT_RATE: rates(0.1), UPDATE_RATE: rates(0.5)}
    result = client_update(model, globals_, initial, fields, steps([0]), steps([0]), numbers)
    assert torch.allclose(result.local_parameters["user_vector"], torch.tensor([1.6, 1.0]))
    assert torch.allclose(result.reconstruct_losses, torch.tensor([9.0]))
    # The error is now 1.6 - 4 = -2.4: update = 0.5 * 2 * 2.4 * user.
    update = result.updates["item_vectors.weight"]
    assert torch.allclose(update[0], 2.4 * torch.tensor([1.6, 1.0]))
    assert not update[1:].any()
    assert torch.allclose(result.update_losses, torch.tensor([2.4**2]))


def test_padding_changes_nothing(model: FederatedModel) -> None:
    initial = {"user_vector": torch.tensor([1.0, 1.0])}
    numbers = {RECONSTRUCT_RATE: rates(0.1, 0.1), UPDATE_RATE: rates(0.5, 0.5)}
    bare = client_update(model, globals_, initial, fields, steps([1], [2]), steps([0], [3]), numbers)
    mask = torch.tensor([[1.0, 0.0, 0.0]] * 2)
    support = Steps(torch.tensor([[1, 0, 0], [2, 0, 0]]), mask)
    query = Steps(torch.tensor([[0, 0, 0], [3, 0, 0]]), mask)
    padded = client_update(model, globals_, initial, fields, support, query, numbers)
    assert torch.allclose(bare.updates["item_vectors.weight"], padded.updates["item_vectors.weight"])
    assert torch.allclose(bare.local_parameters["user_vector"], padded.local_parameters["user_vector"])


def test_without_steps_nothing_changes(model: FederatedModel) -> None:
    initial = {"user_vector": torch.tensor([1.0, 1.0])}
    none = Steps(torch.zeros((0, 5), dtype=torch.int64), torch.zeros((0, 5)))
    numbers = {RECONSTRUCT_RATE: rates(), UPDATE_RATE: rates()}
    result = client_update(model, globals_, initial, fields, none, none, numbers)
    assert torch.equal(result.local_parameters["user_vector"], initial["user_vector"])
    assert not result.updates["item_vectors.weight"].any()
    assert result.reconstruct_losses.shape == result.update_losses.shape == (0,)


def test_the_inputs_are_not_changed(model: FederatedModel) -> None:
    before = ITEMS.clone()
    initial = {"user_vector": torch.tensor([1.0, 1.0])}
    numbers = {RECONSTRUCT_RATE: rates(0.1), UPDATE_RATE: rates(0.5)}
    client_update(model, globals_, initial, fields, steps([0]), steps([1]), numbers)
    assert torch.equal(before, ITEMS)
    assert torch.equal(initial["user_vector"], torch.ones(2))


def test_ridge_is_where_its_gradient_vanishes() -> None:
    model = matrix_factorization(3, 2, mean=3.0, bias=True, reconstruction=Ridge("rating"))
    tables = {"item_vectors.weight": ITEMS, "item_biases.weight": torch.tensor([[0.1], [0.2], [-0.3]])}
    initial = {"user_vector": torch.tensor([0.5, -0.5]), "user_bias": torch.tensor(0.25)}
    used = torch.tensor([1.0, 1.0, 0.0, 1.0])
    found = solve_ridge(model, tables, initial, fields, used, torch.tensor(2.0))
    variables = {name: value.clone().requires_grad_() for name, value in found.items()}
    errors = model.predict({**tables, **variables}, fields) - fields["rating"]
    distance = sum((variables[name] - initial[name]).square().sum() for name in initial)
    objective = (errors.square() * used).sum() + 2.0 * distance
    for gradient in torch.autograd.grad(objective, list(variables.values())):
        assert torch.allclose(gradient, torch.zeros_like(gradient), atol=1e-5)


def test_ridge_without_examples_keeps_the_initial_locals() -> None:
    model = matrix_factorization(3, 2, reconstruction=Ridge("rating"))
    initial = {"user_vector": torch.tensor([0.5, -0.5])}
    none = Steps(torch.zeros((0, 5), dtype=torch.int64), torch.zeros((0, 5)))
    numbers = {RECONSTRUCT_RIDGE: torch.tensor(2.0), UPDATE_RATE: rates()}
    result = client_update(model, globals_, initial, fields, none, none, numbers)
    assert torch.equal(result.local_parameters["user_vector"], initial["user_vector"])


def test_the_examples_of_a_schedule_are_those_not_masked() -> None:
    laid_out = Steps(torch.tensor([[0, 3], [3, 0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert laid_out.examples(5).tolist() == [0, 0, 0, 1, 0]
