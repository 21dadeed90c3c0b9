"""Builds ResNet-50 as a plain torch module, without torchvision (He et al., Deep Residual Learning, 2015, table 1)."""

from __future__ import annotations

import torch
from torch import nn

#: A sample: an image as uint8, (channels, height, width), 150,528 bytes.
SHAPE = (3, 224, 224)


class _Block(nn.Module):
    """A bottleneck: 1x1, 3x3, 1x1 convolutions, the last to four times ``width`` channels, and a way round them."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            *(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
            *(nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        self.round: nn.Module = nn.Identity()
        if inputs != outputs or stride > 1:
            self.round = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.round(x))


class ResNet50(nn.Module):
    """Images (n, 3, 224, 224) uint8 to logits (n, ``classes``). Its weights are random, from ``seed``."""

    def __init__(self, classes: int = 1000, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        layers: list[nn.Module] = [
            nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        ]
        inputs = 64
        for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for i in range(blocks):
                layers.append(_Block(inputs, width, stride if i == 0 else 1))
                inputs = 4 * width
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.body(x.float().div(127.5).sub(1.0))
        return logits


def resnet50() -> ResNet50:
    """What workers load."""
    return ResNet50()
