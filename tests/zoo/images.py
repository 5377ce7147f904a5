"""Networks for images, of small blocks: batch norms at rest, depthwise convolutions, ways down and up again."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.zoo.member import network


class _Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 2, 3, 2, 1, bias=False), nn.BatchNorm2d(2)
        self.conv2, self.bn2 = nn.Conv2d(2, 2, 3, 1, 1, bias=False), nn.BatchNorm2d(2)
        self.down = nn.Sequential(nn.Conv2d(1, 2, 1, 2, bias=False), nn.BatchNorm2d(2))
        self.fc = nn.Linear(2, 2)

    def forward(self, x):
        h = F.relu(self.bn1(self.conv1(x)), inplace=True)
        h = self.bn2(self.conv2(h))
        h += self.down(x)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(F.relu(h), 1), 1))


def resnet(r):
    """A basic block with a shortcut of its own, pooled."""
    kinds = dict.fromkeys(("conv1", "conv2", "down.0"), "conv2d") | dict.fromkeys(("bn1", "bn2", "down.1"), "scale")
    return network(r, _Residual(), 3, 1, 4, 4, kinds=kinds | {"fc": "linear"})


class _Inverted(nn.Module):
    def __init__(self):
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(2, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU6(inplace=True))
        self.depth = nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1, groups=4, bias=False), nn.BatchNorm2d(4), nn.Hardswish())
        self.squeeze, self.excite = nn.Conv2d(4, 1, 1), nn.Conv2d(1, 4, 1)
        self.project = nn.Sequential(nn.Conv2d(4, 2, 1, bias=False), nn.BatchNorm2d(2))

    def forward(self, x):
        h = self.depth(self.expand(x))
        gate = F.hardsigmoid(self.excite(torch.tanh(self.squeeze(F.adaptive_avg_pool2d(h, 1)))))
        return (x + self.project(gate * h)).mean((2, 3))


def mobilenet(r):
    """An inverted residual: wide inside, each channel on its own, gated by its mean, narrow again."""
    convolutions = ("expand.0", "depth.0", "squeeze", "excite", "project.0")
    kinds = dict.fromkeys(convolutions, "conv2d") | dict.fromkeys(("expand.1", "depth.1", "project.1"), "scale")
    return network(r, _Inverted(), 3, 2, 3, 3, kinds=kinds)


class _ConvNeXt(nn.Module):
    def __init__(self):
        super().__init__()
        self.depth, self.norm = nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.LayerNorm(3)
        self.up, self.down, self.gamma = nn.Linear(3, 6), nn.Linear(6, 3), nn.Parameter(torch.ones(3))
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        h = self.norm(self.depth(x).permute(0, 2, 3, 1))
        x = x + (self.gamma * self.down(F.gelu(self.up(h)))).permute(0, 3, 1, 2)
        return self.head(x.mean((-2, -1)))


def convnext(r):
    """A depthwise convolution, then channels last: norm, two layers, a scale of the branch."""
    kinds = {"depth": "conv2d", "norm": "scale", "gamma": "scale"} | dict.fromkeys(("up", "down", "head"), "linear")
    return network(r, _ConvNeXt(), 3, 3, 3, 2, kinds=kinds)


class _UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.deep = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1)
        self.up, self.leave = nn.Conv2d(3, 2, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        h = F.silu(self.enter(x))
        deep = F.silu(self.deep(F.max_pool2d(h, 2)))
        near = self.up(F.interpolate(deep, scale_factor=2))
        smooth = F.interpolate(deep[:, :2], scale_factor=2, mode="bilinear", align_corners=False)
        return self.leave(torch.cat([h, near, smooth], 1))


def unet(r):
    """Down by a pool, up by two ways of interpolation, beside what was there: a label for each pixel."""
    kinds = dict.fromkeys(("enter", "deep", "up", "leave"), "conv2d")
    return network(r, _UNet(), 3, 1, 4, 2, kinds=kinds)
