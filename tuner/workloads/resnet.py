r"""Residual networks for small images: He, Zhang, Ren, Sun, "Deep Residual Learning", arXiv 1512.03385, section 4.2.

::

    x -> 3x3 conv, 16 -> [n blocks of 16] -> [n of 32] -> [n of 64] -> mean over positions -> linear

A block is y = relu(F(x) + S(x)), where F is 3x3 conv, batch norm, relu, 3x3 conv, batch norm, in this order.  The
first block of the second and third group halves the sides.  Its shortcut S takes every second row and column and adds
channels of zeros ("option A": no parameters).  With n blocks per group there are 6n + 2 layers with weights: ResNet-20
has n = 3.  ResNet-8 (n = 1) is not in the paper.

Convolutions are drawn from N(0, 2 / fan_in), as in the paper (its reference 13).  Two things differ from the paper: the
linear layer has torch's own initialization, and images may have any side of at least 4 pixels, not only 32.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, C_in, H, W) -> (B, C_out, ceil(H / stride), ceil(W / stride))."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = channels_out - channels_in
        self.conv1 = _conv3x3(channels_in, channels_out, stride)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = _conv3x3(channels_out, channels_out, 1)
        self.norm2 = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels > 0:
            # Zeros on both sides, so the old channels stay in the middle.
            x = F.pad(x, (0, 0, 0, 0, self.new_channels // 2, self.new_channels - self.new_channels // 2))
        return F.relu(residual + x)


class ResNet(nn.Module):
    """ResNet of 6n + 2 layers: images (B, channels, S, S) -> logits (B, num_classes)."""

    def __init__(self, depth: int, *, num_classes: int, channels: int) -> None:
        """``depth`` is 8, 14, 20 ...: 6n + 2 with n at least 1; ValueError for any other."""
        super().__init__()
        num_blocks, rest = divmod(depth - 2, 6)
        if rest != 0 or num_blocks < 1:
            raise ValueError(f"depth = {depth}: must be 6n + 2 with n at least 1")
        self.conv = _conv3x3(channels, WIDTHS[0], 1)
        self.norm = nn.BatchNorm2d(WIDTHS[0])
        blocks: list[Block] = []
        channels_in = WIDTHS[0]
        for group, width in enumerate(WIDTHS):
            for place in range(num_blocks):
                blocks.append(Block(channels_in, width, stride=2 if group > 0 and place == 0 else 1))
                channels_in = width
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(WIDTHS[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.conv(x))))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def _conv3x3(channels_in: int, channels_out: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
