"""Networks that are trained in the timings."""

from __future__ import annotations

from torch import nn
from torchvision.models import resnet18

from experiments.common.layers import hidden_layers


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers of these widths, with ReLU between them."""
    *hidden, n_last, n_outputs = widths
    layers = hidden_layers((*hidden, n_last), nn.ReLU)
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(n_last, n_outputs))


def lenet() -> nn.Sequential:
    """LeNet-5 with ReLU and max pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def resnet() -> nn.Module:
    """ResNet-18 for images of 32×32 pixels: a first layer of 3×3 filters, and no pooling."""
    network = resnet18(num_classes=10)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network
