"""Next-word prediction: an LSTM language model whose embeddings of unusual words never leave the device.

An example is one sentence, or a piece of one: `tokens` are seen, `next` are the tokens that follow, both numbered as
`fedrecon.datasets.WordVocabulary` does: padding, begin, end, words, then buckets of words out of vocabulary (OOV). A
bucket holds another word for every user, so its *input* embedding is local: reconstructed from what the user wrote.
All else is global: the rows of words and marks, LSTM, projection, and the output layer with its row for every id.

Rules:
- The loss of an example is the mean cross entropy over its real positions: those whose next token is not padding. A
  next token out of vocabulary is to be predicted like any other, as its bucket, whose output row is global: the hash
  is the same for all users, so the bucket's frequency is something that all can learn.
- Accuracy is `right` / `counted`: of the positions whose next token is a word of the vocabulary (neither OOV, nor
  padding, nor a mark), those where the model's first choice is that word. The first choice is made among all ids, as
  in the paper; so one large bucket, more frequent than any word, takes first places that five hundred small ones do
  not. `right_among_words` makes the choice among words alone, as a keyboard would, and is free of that effect.
- The LSTM is written out step by step, since `nn.LSTM` can neither be mapped over clients nor exported with its
  gradient.

Source: Singhal et al. 2021, Federated Reconstruction, section 5.1.2 and appendix C.2 (arXiv 2102.03448): LSTM 670,
embedding and projection 96, sequences of 20, batches of 16, at most 100 steps. Initial values as Keras has them there.
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedrecon.datasets.word_vocabulary import MARKS, PADDING
from fedrecon.learning.model import FederatedModel, Field, FromGlobal, Initial, Metric, Role, Tensors, Uniform
from fedrecon.learning.reconstruction import GradientSteps, Hyperparameter, Schedule

TOKENS, NEXT = "tokens", "next"
OOV_EMBEDDING, OOV_DEFAULT = "oov_embedding", "oov_default"
# Initial embeddings are drawn from [-0.05, 0.05), as in the paper's code: for OOV ones anew in every session.
INITIAL_BOUND = 0.05
SEQUENCE_LENGTH, BATCH_SIZE, MAXIMUM_STEPS = 20, 16, 100
GATES = 4


class OovEmbeddings(Enum):
    """Whose the input embeddings of OOV buckets are, and where they start.

    `LOCAL` is FedRecon: drawn anew in every session, and reconstructed. `LOCAL_FROM_DEFAULT`: reconstructed from a
    default that all share; what fine-tunes a table that was trained as `GLOBAL`. `GLOBAL`: shared, nothing is local.
    """

    LOCAL = "local"
    LOCAL_FROM_DEFAULT = "local from a shared default"
    GLOBAL = "global"


class NextWord(nn.Module):
    """Scores, at each position of a sentence, every id as the next token.

    Attributes:
        embedding: `[marks + words, embedding]`.
        oov_embedding: `[oov_buckets, embedding]`.
        oov_default: where that starts, in its shape; only with `LOCAL_FROM_DEFAULT`.
        input_weight: `[4 hidden, embedding]`: input, forget, cell and output gate, one below the other.
        hidden_weight: `[4 hidden, hidden]`, likewise.
        gate_bias: `[4 hidden]`, likewise.
        projection: from the hidden state to `projection` numbers.
        output: from those to the score of every id.
    """

    def __init__(
        self,
        words: int,
        oov_buckets: int,
        embedding: int,
        hidden: int,
        projection: int,
        oov: OovEmbeddings,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.hidden = hidden
        self.embedding = nn.Parameter(torch.empty(MARKS + words, embedding))
        self.oov_embedding = nn.Parameter(torch.empty(oov_buckets, embedding))
        self.input_weight = nn.Parameter(torch.empty(GATES * hidden, embedding))
        self.hidden_weight = nn.Parameter(torch.empty(GATES * hidden, hidden))
        self.gate_bias = nn.Parameter(torch.zeros(GATES * hidden))
        self.projection = nn.Linear(hidden, projection)
        self.output = nn.Linear(projection, MARKS + words + oov_buckets)
        if oov is OovEmbeddings.LOCAL_FROM_DEFAULT:
            self.oov_default = nn.Parameter(torch.zeros(oov_buckets, embedding))
        for table in (self.embedding, self.oov_embedding):
            nn.init.uniform_(table, -INITIAL_BOUND, INITIAL_BOUND, generator=generator)
        nn.init.xavier_uniform_(self.input_weight, generator=generator)
        nn.init.orthogonal_(self.hidden_weight, generator=generator)
        # A forget gate that starts open lets gradients through (Jozefowicz et al. 2015).
        nn.init.ones_(self.gate_bias[hidden : 2 * hidden])
        for layer in (self.projection, self.output):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the scores of all ids as the next token.

        Args:
            tokens: what is seen, `[examples, positions] int64`.

        Returns:
            `[examples, positions, ids] float32`.
        """
        positions = tokens.shape[1]
        # By position, and flat for each matrix product: torch exports no gradient of products in three dimensions.
        flat = tokens.t().reshape(-1)
        # Two lookups and no table of both: what all clients share is then not copied for each of them.
        buckets = flat - len(self.embedding)
        shared = functional.embedding(flat.clamp(max=len(self.embedding) - 1), self.embedding)
        own = functional.embedding(buckets.clamp(min=0), self.oov_embedding)
        seen = torch.where(buckets.unsqueeze(-1) < 0, shared, own)
        steps = functional.linear(seen, self.input_weight, self.gate_bias).view(positions, -1, GATES * self.hidden)
        state = torch.zeros_like(steps[0, :, : self.hidden])
        cell = state
        states: list[Tensor] = []
        for step in steps.unbind(0):
            gates = step + functional.linear(state, self.hidden_weight)
            enter, keep, candidate, show = gates.chunk(GATES, dim=-1)
            cell = keep.sigmoid() * cell + enter.sigmoid() * candidate.tanh()
            state = show.sigmoid() * cell.tanh()
            states.append(state)
        scores: Tensor = self.output(self.projection(torch.cat(states)))
        return scores.view(positions, -1, scores.shape[-1]).transpose(0, 1)


def next_word(
    words: int,
    oov_buckets: int = 500,
    embedding: int = 96,
    hidden: int = 670,
    projection: int = 96,
    *,
    length: int = SEQUENCE_LENGTH,
    oov: OovEmbeddings = OovEmbeddings.LOCAL,
    reconstruct_rate: float = 0.1,
    update_rate: float = 0.3,
    seed: int = 0,
) -> FederatedModel:
    """Returns next-word prediction as a federated model; the defaults are the paper's sizes.

    Args:
        words: words of the vocabulary.
        oov_buckets: buckets of the words out of it, at least 1.
        embedding: length of an embedding.
        hidden: width of the LSTM.
        projection: width between LSTM and output.
        length: positions of an example.
        oov: whose the OOV embeddings are; with `GLOBAL` the model is one for plain federated averaging.
        reconstruct_rate: default rate of the reconstruction's SGD steps.
        update_rate: default rate of the update's SGD steps.
        seed: of the initial weights.
    """
    module = NextWord(words, oov_buckets, embedding, hidden, projection, oov, torch.Generator().manual_seed(seed))
    start: dict[str, Initial] = {}
    match oov:
        case OovEmbeddings.LOCAL:
            start[OOV_EMBEDDING] = Uniform(INITIAL_BOUND)
        case OovEmbeddings.LOCAL_FROM_DEFAULT:
            start[OOV_EMBEDDING] = FromGlobal(OOV_DEFAULT)
        case OovEmbeddings.GLOBAL:
            pass
    ids = MARKS + words + oov_buckets
    schedule = Schedule(BATCH_SIZE, epochs=1, maximum_steps=MAXIMUM_STEPS)

    def is_word(following: Tensor) -> Tensor:
        return (following >= MARKS) & (following < MARKS + words)

    def counted(prediction: Tensor, targets: Tensors) -> Tensor:
        del prediction
        return is_word(targets[NEXT]).to(torch.float32).sum(-1)

    def right(prediction: Tensor, targets: Tensors) -> Tensor:
        following = targets[NEXT]
        return ((prediction.argmax(-1) == following) & is_word(following)).to(torch.float32).sum(-1)

    def right_among_words(prediction: Tensor, targets: Tensors) -> Tensor:
        following = targets[NEXT]
        choice = prediction[..., MARKS : MARKS + words].argmax(-1) + MARKS
        return (choice == following).to(torch.float32).sum(-1)

    return FederatedModel(
        name="next word",
        module=module,
        local=start,
        fields=(
            Field(TOKENS, dtype=torch.int64, shape=(length,), minimum=0, maximum=ids - 1),
            Field(NEXT, Role.TARGET, torch.int64, shape=(length,), minimum=0, maximum=ids - 1),
        ),
        loss=mean_cross_entropy,
        metrics={
            "right": Metric(right, bound=length),
            "right_among_words": Metric(right_among_words, bound=length),
            "counted": Metric(counted, bound=length),
        },
        bounds={name: 0.5 for name, _ in module.named_parameters() if name not in start},
        reconstruction=GradientSteps(Hyperparameter(reconstruct_rate, 0.0, 1.0), schedule),
        update_rate=Hyperparameter(update_rate, 0.0, 1.0),
        update_schedule=schedule,
    )


def mean_cross_entropy(prediction: Tensor, targets: Tensors) -> Tensor:
    """Returns the mean cross entropy over the real positions of every example, `[examples] float32`.

    Args:
        prediction: `[examples, positions, ids] float32`, scores.
        targets: `next`, `[examples, positions] int64`; an example of padding alone has the loss 0.
    """
    following = targets[NEXT]
    real = (following != PADDING).to(prediction.dtype)
    likelihood = prediction.log_softmax(-1).gather(-1, following.unsqueeze(-1)).squeeze(-1)
    return -(likelihood * real).sum(-1) / real.sum(-1).clamp(min=1.0)
