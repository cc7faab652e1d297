"""The next-word model: what it predicts, what it is scored on, and that many clients can share one step."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedrecon.datasets.word_vocabulary import BEGIN, END, MARKS, PADDING
from fedrecon.learning.model import FederatedModel
from fedrecon.learning.models.next_word import (
    NEXT,
    OOV_DEFAULT,
    OOV_EMBEDDING,
    TOKENS,
    NextWord,
    OovEmbeddings,
    mean_cross_entropy,
    next_word,
)

WORDS, BUCKETS, LENGTH = 7, 3, 5
FIRST_BUCKET = MARKS + WORDS


@pytest.fixture
def model() -> FederatedModel:
    return next_word(WORDS, BUCKETS, embedding=4, hidden=6, projection=5, length=LENGTH)


def sentences(count: int, seed: int = 0) -> dict[str, Tensor]:
    tokens = torch.randint(
        MARKS, MARKS + WORDS + BUCKETS, (count, LENGTH), generator=torch.Generator().manual_seed(seed)
    )
    tokens[:, 0] = BEGIN
    following = torch.cat([tokens[:, 1:], torch.full((count, 1), END)], dim=1)
    return {TOKENS: tokens, NEXT: following}


def test_the_lstm_is_torchs_own(model: FederatedModel) -> None:
    module = model.module
    assert isinstance(module, NextWord)
    fields = sentences(3)
    oracle = nn.LSTM(4, 6, batch_first=True)
    weights = {
        "weight_ih_l0": module.input_weight,
        "weight_hh_l0": module.hidden_weight,
        "bias_ih_l0": module.gate_bias,
        "bias_hh_l0": torch.zeros(24),
    }
    rows = torch.cat([module.embedding, module.oov_embedding])
    states, _ = functional_call(oracle, weights, (rows[fields[TOKENS]],))
    torch.testing.assert_close(module(fields[TOKENS]), module.output(module.projection(states)))


def test_a_position_sees_nothing_of_what_follows(model: FederatedModel) -> None:
    fields = sentences(2)
    changed = fields[TOKENS].clone()
    changed[:, 3:] = PADDING
    before, after = (model.module(tokens) for tokens in (fields[TOKENS], changed))
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3:], after[:, 3:])


def test_only_oov_embeddings_are_local(model: FederatedModel) -> None:
    assert list(model.local_parameters) == [OOV_EMBEDDING]
    assert model.local_parameters[OOV_EMBEDDING].shape == (BUCKETS, 4)
    assert model.global_parameters["embedding"].shape == (MARKS + WORDS, 4)
    plain = next_word(WORDS, BUCKETS, 4, 6, 5, length=LENGTH, oov=OovEmbeddings.GLOBAL)
    assert not plain.local_parameters
    assert set(plain.global_parameters) == set(model.parameters)


def test_oov_embeddings_may_start_at_a_default_that_all_share(model: FederatedModel) -> None:
    tuned = next_word(WORDS, BUCKETS, 4, 6, 5, length=LENGTH, oov=OovEmbeddings.LOCAL_FROM_DEFAULT)
    default = torch.arange(12.0).reshape(3, 4)
    assert torch.equal(tuned.at_default({OOV_DEFAULT: default})[OOV_EMBEDDING], default)
    assert set(tuned.global_parameters) == {*model.global_parameters, OOV_DEFAULT}


def test_padding_has_no_part_in_the_loss(model: FederatedModel) -> None:
    fields = sentences(2)
    short = {name: value.clone() for name, value in fields.items()}
    short[NEXT][:, 2:] = PADDING
    short[TOKENS][:, 2:] = PADDING
    other = {name: value.clone() for name, value in short.items()}
    other[TOKENS][:, 3:] = 4
    parameters = model.parameters
    torch.testing.assert_close(model.losses(parameters, short), model.losses(parameters, other))
    scores = model.predict(parameters, short)
    by_hand = nn.functional.cross_entropy(
        scores[:, :2].reshape(-1, FIRST_BUCKET + BUCKETS), short[NEXT][:, :2].reshape(-1)
    )
    torch.testing.assert_close(model.losses(parameters, short).mean(), by_hand)


def test_an_example_of_padding_alone_costs_nothing_and_moves_nothing(model: FederatedModel) -> None:
    empty = {TOKENS: torch.zeros(1, LENGTH, dtype=torch.int64), NEXT: torch.zeros(1, LENGTH, dtype=torch.int64)}
    parameters = {name: value.detach() for name, value in model.parameters.items()}
    gradients = grad(lambda values: model.losses(values, empty).sum())(parameters)
    assert model.losses(parameters, empty).tolist() == [0.0]
    assert all(not gradient.any() for gradient in gradients.values())


def metrics(model: FederatedModel, choices: list[int], following: list[int]) -> dict[str, float]:
    """The metrics of one sentence whose first choices are these; every score below is the id's own number."""
    scores = torch.arange(FIRST_BUCKET + BUCKETS).float().expand(1, LENGTH, -1).clone() * 1e-3
    scores[0, torch.arange(LENGTH), torch.tensor(choices)] = 1.0
    targets = {NEXT: torch.tensor([following])}
    return {name: metric.function(scores, targets).item() for name, metric in model.metrics.items()}


def test_only_words_of_the_vocabulary_are_counted(model: FederatedModel) -> None:
    last_word = FIRST_BUCKET - 1
    exact = metrics(model, [3, 4, FIRST_BUCKET, END, 0], [3, 5, FIRST_BUCKET, END, PADDING])
    assert exact == {"right": 1.0, "right_among_words": 1.0, "counted": 2.0}
    # A bucket in first place is a wrong word for the paper's accuracy, and no candidate for the other one.
    bucket_first = metrics(model, [FIRST_BUCKET] * 3 + [0, 0], [last_word, 3, 3, PADDING, PADDING])
    assert bucket_first == {"right": 0.0, "right_among_words": 1.0, "counted": 3.0}


def test_no_metric_exceeds_its_bound(model: FederatedModel) -> None:
    for name, value in metrics(model, [3] * LENGTH, [3] * LENGTH).items():
        assert value == LENGTH == model.metrics[name].bound


def test_the_loss_is_the_mean_over_real_positions() -> None:
    scores = torch.zeros(2, 2, 4)
    targets = {NEXT: torch.tensor([[3, PADDING], [3, 2]])}
    torch.testing.assert_close(mean_cross_entropy(scores, targets), torch.full((2,), 4.0).log())


def test_many_clients_step_together_as_each_alone(model: FederatedModel) -> None:
    clients = [sentences(4, seed) for seed in range(3)]
    parameters = [{name: value.detach() + 0.1 * seed for name, value in model.parameters.items()} for seed in range(3)]

    def loss(values: Mapping[str, Tensor], fields: Mapping[str, Tensor]) -> Tensor:
        return model.losses(values, fields).mean()

    together = vmap(grad(loss))(
        {name: torch.stack([each[name] for each in parameters]) for name in parameters[0]},
        {name: torch.stack([each[name] for each in clients]) for name in clients[0]},
    )
    for place, (own, fields) in enumerate(zip(parameters, clients, strict=True)):
        for name, gradient in grad(loss)(own, fields).items():
            torch.testing.assert_close(together[name][place], gradient, rtol=1e-5, atol=1e-6)
