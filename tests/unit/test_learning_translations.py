"""Rules of our own for backward operators give what the operators give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from fedrecon.learning.planning.translations import aten, decompositions, rewriting
from fedrecon.learning.planning.values import PlanError


def same(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("examples", [1, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    ("extents", "kernel", "stride", "padding", "dilation"),
    [
        ((9,), (3,), (1,), (0,), (1,)),
        ((9,), (2,), (3,), (2,), (2,)),
        ((6, 5), (3, 3), (1, 1), (0, 0), (1, 1)),
        ((9, 8), (3, 2), (2, 3), (1, 0), (2, 1)),
        ((4, 4), (4, 4), (1, 1), (0, 0), (1, 1)),
        ((8, 7), (3, 1), (4, 2), (2, 2), (1, 1)),
        ((4, 5, 4), (2, 3, 2), (1, 2, 1), (0, 1, 0), (1, 1, 2)),
    ],
)
def test_the_gradient_of_a_convolution_is_right(
    extents: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    examples: int,
) -> None:
    images, weight = draw(examples, 4, *extents), draw(8, 4 // groups, *kernel)
    setting = (stride, padding, dilation, False, [0] * len(extents), groups)
    gradient = draw(*aten.convolution(images, weight, None, *setting).shape)
    backward = aten.convolution_backward.default
    expected = backward(gradient, images, weight, [8], *setting, [True, True, True])
    for wanted in ([True, True, True], [True, False, False], [False, True, False], [False, False, True]):
        found = decompositions()[backward](gradient, images, weight, [8], *setting, wanted)
        assert [each is not None for each in found] == wanted
        assert all(same(ours, theirs) for ours, theirs in zip(found, expected, strict=True) if ours is not None)


@pytest.mark.parametrize("setting", [([2, 2], [2, 2], [0, 0]), ([3, 2], [2, 1], [1, 0]), ([3, 3], [1, 2], [0, 1])])
@pytest.mark.parametrize("rounded_up", [False, True])
def test_the_gradient_of_max_pooling_goes_to_the_first_maximum(
    setting: tuple[list[int], ...], rounded_up: bool
) -> None:
    """Rounded numbers, so that windows have several maxima."""
    images = (2 * draw(3, 2, 9, 8)).round()
    results, chosen = aten.max_pool2d_with_indices(images, *setting, [1, 1], rounded_up)
    gradient = draw(*results.shape)
    backward = aten.max_pool2d_with_indices_backward.default
    given = (gradient, images, *setting, [1, 1], rounded_up, chosen)
    assert same(decompositions()[backward](*given), backward(*given))


@pytest.mark.parametrize(
    "setting", [([2, 2], [2, 2], [0, 0]), ([3, 2], [2, 1], [1, 0]), ([3, 3], [1, 2], [0, 1]), ([2, 2], [], [0, 0])]
)
def test_the_gradient_of_average_pooling_is_spread_evenly(setting: tuple[list[int], ...]) -> None:
    images = draw(3, 2, 9, 8)
    gradient = draw(*aten.avg_pool2d(images, *setting).shape)
    backward = aten.avg_pool2d_backward.default
    given = (gradient, images, *setting, False, True, None)
    assert same(decompositions()[backward](*given), backward(*given))


@pytest.mark.parametrize(
    "setting", [([1, 1], True, True, None), ([1, 1], False, False, None), ([0, 0], False, True, 3)]
)
def test_an_average_of_uneven_windows_is_refused(setting: tuple[Any, ...]) -> None:
    with pytest.raises(PlanError, match="average pooling"):
        decompositions()[aten.avg_pool2d_backward.default](draw(1, 2, 4, 4), draw(1, 2, 8, 8), [3, 3], [2, 2], *setting)


def test_the_gradient_of_a_transposed_convolution_is_refused() -> None:
    setting = ([1, 1], [0, 0], [1, 1], True, [0, 0], 1, [True, True, True])
    with pytest.raises(PlanError, match="transposed convolution"):
        decompositions()[aten.convolution_backward.default](
            draw(1, 2, 5, 5), draw(1, 2, 4, 4), draw(2, 2, 2, 2), [2], *setting
        )


@pytest.mark.parametrize("kind", [torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN])
def test_a_recurrent_layer_is_written_out(kind: Any) -> None:
    layer = kind(3, 4, batch_first=True)

    def run(sequences: Tensor) -> Tensor:
        outputs: Tensor = layer(sequences)[0]
        return outputs

    with rewriting():
        graph = make_fx(run, tracing_mode="symbolic", _allow_non_fake_inputs=True)(torch.ones(2, 3, 3))
    assert not any(word in str(node.target) for node in graph.graph.nodes for word in ("lstm", "gru", "rnn"))
    sequences = draw(2, 3, 3)
    assert torch.allclose(graph(sequences), run(sequences), atol=1e-6)


def test_a_linear_layer_over_more_axes_is_one_over_two() -> None:
    rows, weight, bias = draw(2, 3, 4), draw(5, 4), draw(5)
    with rewriting():
        graph = make_fx(functional.linear)(rows, weight, bias)
    extents = [node.meta["val"].dim() for node in graph.graph.nodes if node.target is aten.addmm.default]
    assert extents == [2]
    assert torch.allclose(graph(rows, weight, bias), functional.linear(rows, weight, bias), atol=1e-6)


def test_onednn_is_afterwards_as_it_was() -> None:
    backend: Any = torch.backends.mkldnn
    before = backend.enabled
    with rewriting():
        assert not backend.enabled
    assert backend.enabled == before
