"""The next-word model becomes a plan: its recurrence is unrolled in the graphs, and they agree with torch."""

import pytest

from fedrecon.learning.models.next_word import next_word
from fedrecon.learning.planning.graphs import compile_graphs
from fedrecon.learning.planning.inspection import inspect
from fedrecon.learning.planning.verification import verify


@pytest.mark.slow
def test_the_graphs_of_a_small_next_word_model_agree_with_torch() -> None:
    model = next_word(words=7, oov_buckets=3, embedding=4, hidden=6, projection=5, length=4)
    inspect(model)
    assert verify(model, compile_graphs(model), seed=0)[1] < 1e-5
