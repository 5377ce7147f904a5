"""Networks of real size, written by hand: ResNet-18 and LeNet, a GPT of six layers, a small vision transformer.

Each is `(f, params, x)`: `f(params, x)` a pure function of an nn.Module in eval mode, x a batch of random data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

Network = tuple[nn.Module, Callable[..., Tensor], dict[str, Tensor], Tensor]


def made(module: nn.Module, x: Tensor) -> Network:
    module.eval()
    params = {name: t.detach() for name, t in module.named_parameters()}
    return module, lambda p, x: functional_call(module, p, (x,)), params, x


class Residual(nn.Module):
    def __init__(self, n: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(n, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.norm2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.short = (
            nn.Sequential() if stride == 1 else nn.Sequential(nn.Conv2d(n, o, 1, stride, bias=False), nn.BatchNorm2d(o))
        )

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(z)) + self.short(x))


def resnet18(batch: int = 16, size: int = 32, *, stem: str = "imagenet", classes: int = 10) -> Network:
    """stem: "imagenet" (7 x 7, stride 2, and a maximum: of 32 x 32 images the last layers see one position), "cifar" (3 x 3)."""
    torch.manual_seed(0)
    wide = stem == "imagenet"
    first = nn.Conv2d(3, 64, 7, 2, 3, bias=False) if wide else nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    parts: list[nn.Module] = [first, nn.BatchNorm2d(64), nn.ReLU()] + [nn.MaxPool2d(3, 2, 1)] * wide
    for n, o, stride in [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]:
        parts += [Residual(n, o, stride), Residual(o, o, 1)]
    parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes)]
    return made(nn.Sequential(*parts), torch.randn(batch, 3, size, size))


def lenet(batch: int = 128) -> Network:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip
    return made(module, torch.randn(batch, 1, 28, 28))


class Block(nn.Module):
    """Attention and a perceptron, each after a norm and beside an identity."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(z.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    def __init__(self, vocabulary: int, length: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, True) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.token(x) + self.position(torch.arange(x.shape[1]))
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


def gpt(batch: int = 4, vocabulary: int = 1000, length: int = 64, width: int = 256, depth: int = 6) -> Network:
    torch.manual_seed(0)
    return made(GPT(vocabulary, length, width, depth, 8), torch.randint(vocabulary, (batch, length)))


class ViT(nn.Module):
    def __init__(self, size: int, patch: int, width: int, depth: int, heads: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.cls = nn.Parameter(torch.randn(1, 1, width) / 50)
        self.position = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width) / 50)
        self.blocks = nn.ModuleList(Block(width, heads, False) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).mT
        h = torch.cat([self.cls.expand(len(x), -1, -1), h], 1) + self.position
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h)[:, 0])


def vit_tiny(batch: int = 4, size: int = 224, classes: int = 1000) -> Network:
    torch.manual_seed(0)
    return made(ViT(size, 16, 192, 12, 3, classes), torch.randn(batch, 3, size, size))


def forward_backward(network: Network, classes: Any = None) -> Callable[[], Any]:
    """One forward and one backward pass: the gradients of all parameters."""
    module, _, _, x = network

    def run() -> Any:
        y = module(x)
        loss = F.cross_entropy(y.flatten(0, -2), torch.zeros(y[..., 0].numel(), dtype=torch.long))
        return torch.autograd.grad(loss, list(module.parameters()))

    return run
