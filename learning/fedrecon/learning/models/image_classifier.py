"""A small convolutional classifier of images with a personal embedding: one network for all, told who is asking.

Two convolutions with max-pooling see the image. What they saw and the personal embedding go side by side into a hidden
layer and from there to the classes, so that the embedding can change what a shape means to this user, not only how
often a class comes. All layers are global and dense; the embedding is local, and starts from a learned default, the
global parameter `default`: what a user without examples gets.

Source: FEMNIST, the handwriting of 3,550 people as their own data sets, in Caldas et al. 2018, LEAF (arXiv
1812.01097); personal embeddings in Bui et al. 2019, Federated User Representation Learning (arXiv 1909.12535).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedrecon.learning.model import FederatedModel, Field, FromGlobal, Metric, Role, Tensors
from fedrecon.learning.reconstruction import GradientSteps, Hyperparameter, Schedule

IMAGE, LABEL = "image", "label"
# A guess among 62 classes costs 4.1; more than this is clipped in reports.
CROSS_ENTROPY_BOUND = 16.0
KERNEL = 3


class ImageClassifier(nn.Module):
    """Scores every class.

    Attributes:
        default: `[embedding]`, global: where the personal embedding starts.
        personal: `[embedding]`, local.
        first: convolution to `filters` channels.
        second: convolution to twice as many.
        hidden: from both, side by side, to `hidden` numbers.
        output: from those to the score of every class.
    """

    def __init__(
        self,
        classes: int,
        shape: tuple[int, int, int],
        filters: int,
        embedding: int,
        hidden: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        self.default = nn.Parameter(torch.empty(embedding))
        self.personal = nn.Parameter(torch.empty(embedding))
        self.first = nn.Conv2d(channels, filters, KERNEL, padding=KERNEL // 2)
        self.second = nn.Conv2d(filters, 2 * filters, KERNEL, padding=KERNEL // 2)
        self.hidden = nn.Linear(2 * filters * (height // 4) * (width // 4) + embedding, hidden)
        self.output = nn.Linear(hidden, classes)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter, generator=generator)
            else:
                nn.init.zeros_(parameter)

    def forward(self, image: Tensor) -> Tensor:
        """Returns the scores of all classes.

        Args:
            image: `[examples, channels, height, width] float32`, 0 to 1.

        Returns:
            `[examples, classes] float32`.
        """
        seen = functional.max_pool2d(torch.relu(self.first(image)), 2)
        seen = functional.max_pool2d(torch.relu(self.second(seen)), 2).flatten(1)
        personal = self.personal.expand(image.shape[0], -1)
        scores: Tensor = self.output(torch.relu(self.hidden(torch.cat([seen, personal], dim=1))))
        return scores


def image_classifier(
    classes: int = 62,
    shape: tuple[int, int, int] = (1, 28, 28),
    filters: int = 16,
    embedding: int = 16,
    hidden: int = 64,
    *,
    reconstruct_rate: float = 0.1,
    update_rate: float = 0.05,
    seed: int = 0,
) -> FederatedModel:
    """Returns the classifier as a federated model; the defaults fit FEMNIST.

    Args:
        classes: labels are 0 to `classes` - 1.
        shape: channels, height and width of an image; height and width at least 4.
        filters: channels after the first convolution; the second has twice as many.
        embedding: length of the personal embedding.
        hidden: width of the hidden layer.
        reconstruct_rate: default rate of the reconstruction's SGD steps.
        update_rate: default rate of the update's SGD steps.
        seed: of the initial weights.
    """
    module = ImageClassifier(classes, shape, filters, embedding, hidden, torch.Generator().manual_seed(seed))
    return FederatedModel(
        name="image classifier",
        module=module,
        local={"personal": FromGlobal("default")},
        fields=(
            Field(IMAGE, shape=shape, minimum=0.0, maximum=1.0),
            Field(LABEL, Role.TARGET, torch.int64, minimum=0, maximum=classes - 1),
        ),
        loss=cross_entropy,
        metrics={
            "right": Metric(right, bound=1.0),
            "cross_entropy": Metric(cross_entropy, bound=CROSS_ENTROPY_BOUND),
        },
        bounds={name: 0.5 for name, _ in module.named_parameters() if name != "personal"},
        reconstruction=GradientSteps(Hyperparameter(reconstruct_rate, 0.0, 0.5), Schedule(10, 5, 50)),
        update_rate=Hyperparameter(update_rate, 0.0, 0.1),
        update_schedule=Schedule(batch_size=10, epochs=1, maximum_steps=50),
    )


def cross_entropy(prediction: Tensor, targets: Tensors) -> Tensor:
    """Returns the cross entropy of every example, `[examples] float32`."""
    return functional.cross_entropy(prediction, targets[LABEL], reduction="none")


def right(prediction: Tensor, targets: Tensors) -> Tensor:
    """Returns 1 where the class of the highest score is the label, `[examples] float32`."""
    return (prediction.argmax(-1) == targets[LABEL]).to(torch.float32)
