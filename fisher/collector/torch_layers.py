"""Sizes that layers keep beside their tensors, read off tensors that have grown or shrunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

Sizes = dict[str, Any]


def _linear(part: Any) -> Sizes:
    out_features, in_features = part.weight.shape
    return {"in_features": in_features, "out_features": out_features}


def _bilinear(part: Any) -> Sizes:
    out, one, two = part.weight.shape
    return {"in1_features": one, "in2_features": two, "out_features": out}


def _groups(part: Any, channels: int) -> int:
    """As many as there are channels where each channel was a group of its own, else those that there were."""
    depthwise = part.groups == part.in_channels and part.groups > 1
    return channels * part.groups // part.out_channels if depthwise else part.groups


def _conv(part: Any) -> Sizes:
    out, each = part.weight.shape[:2]
    groups = _groups(part, out)
    return {"in_channels": each * groups, "out_channels": out, "groups": groups}


def _conv_transpose(part: Any) -> Sizes:
    inputs, each = part.weight.shape[:2]
    groups = inputs if part.groups == part.in_channels and part.groups > 1 else part.groups
    return {"in_channels": inputs, "out_channels": each * groups, "groups": groups}


def _batch_norm(part: Any) -> Sizes:
    held = [t for t in (part.weight, part.running_mean) if t is not None]
    return {"num_features": len(held[0])} if held else {}


def _layer_norm(part: Any) -> Sizes:
    return {} if part.weight is None else {"normalized_shape": tuple(part.weight.shape)}


def _group_norm(part: Any) -> Sizes:
    if part.weight is None:
        return {}
    channels = len(part.weight)
    alone = part.num_groups == part.num_channels and part.num_groups > 1
    return {"num_channels": channels, "num_groups": channels if alone else part.num_groups}


def _embedding(part: Any) -> Sizes:
    rows, width = part.weight.shape
    return {"num_embeddings": rows, "embedding_dim": width}


def _recurrent(part: Any) -> Sizes:
    sizes = {"input_size": part.weight_ih_l0.shape[1], "hidden_size": _units(part.weight_ih_l0, part)}
    return sizes | ({"proj_size": part.weight_hr_l0.shape[0]} if part.proj_size else {})


def _cell(part: Any) -> Sizes:
    return {"input_size": part.weight_ih.shape[1], "hidden_size": part.weight_hh.shape[1]}


def _units(weight: Any, part: Any) -> int:
    return int(weight.shape[0]) // {"LSTM": 4, "GRU": 3}.get(part.mode, 1)


def _attention(part: Any) -> Sizes:
    width = part.out_proj.weight.shape[0]
    packed = part.in_proj_weight is not None
    inner = [part.in_proj_weight.shape[0] // 3] if packed else [part.q_proj_weight.shape[0]]
    if {*inner, part.out_proj.weight.shape[1]} != {width} or width % part.num_heads:
        raise ValueError(
            f"MultiheadAttention: got {inner[0]} rows of q and {part.out_proj.weight.shape[1]} inputs of out_proj for embed_dim "
            f"{width} and {part.num_heads} heads, expected embed_dim of both; it keeps embed_dim = num_heads * head_dim: write "
            "the layer out to change its heads or their width"
        )
    keys, values = (width, width) if packed else (part.k_proj_weight.shape[1], part.v_proj_weight.shape[1])
    return {"embed_dim": width, "head_dim": width // part.num_heads, "kdim": keys, "vdim": values}


KNOWN: tuple[tuple[type[nn.Module] | tuple[type[nn.Module], ...], Callable[[Any], Sizes]], ...] = (
    (nn.Linear, _linear),
    (nn.Bilinear, _bilinear),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), _conv_transpose),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), _conv),
    (nn.modules.batchnorm._NormBase, _batch_norm),
    ((nn.LayerNorm, nn.RMSNorm), _layer_norm),
    (nn.GroupNorm, _group_norm),
    ((nn.Embedding, nn.EmbeddingBag), _embedding),
    (nn.RNNBase, _recurrent),
    (nn.RNNCellBase, _cell),
    (nn.MultiheadAttention, _attention),
    (nn.PReLU, lambda part: {"num_parameters": len(part.weight)}),
)


def sizes_of(part: nn.Module) -> Callable[[Any], Sizes] | None:
    """What reads the sizes that a module keeps off its tensors; None for one that keeps none, or in a way unknown here.

    Beside torch's own layers these are those like the Conv1D of transformers, y = x W + b with W `[nx, nf]`.

    >>> layer = nn.Conv2d(4, 8, 3, groups=4)
    >>> sizes_of(layer)(layer), sizes_of(nn.Tanh())
    ({'in_channels': 4, 'out_channels': 8, 'groups': 4}, None)
    """
    known = next((read for kind, read in KNOWN if isinstance(part, kind)), None)
    if known is not None:
        return known
    weight, kept = part._parameters.get("weight"), vars(part)
    if weight is None or weight.ndim != 2 or kept.get("nf") != weight.shape[1]:
        return None
    return _transposed if kept.get("nx", weight.shape[0]) == weight.shape[0] else None


def _transposed(part: Any) -> Sizes:
    inputs, outputs = part.weight.shape
    return {"nf": outputs} | ({"nx": inputs} if "nx" in vars(part) else {})


class Follower:
    """A module whose layers keep, for the length of a call, the sizes of the tensors that are in them then.

    >>> import torch
    >>> layer = nn.LayerNorm(2)
    >>> with Follower(layer).following():
    ...     y = torch.func.functional_call(layer, {"weight": torch.ones(3), "bias": torch.ones(3)}, torch.zeros(1, 3))
    >>> y, layer.normalized_shape
    (tensor([[1., 1., 1.]]), (2,))
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.rest: list[tuple[nn.Module, Callable[[Any], Sizes], Sizes]] = []
        for part in module.modules():
            read = sizes_of(part)
            try:
                self.rest += [] if read is None else [(part, read, read(part))]
            except (AttributeError, TypeError, ValueError):  # a subclass that holds its tensors in another way
                continue

    @contextmanager
    def following(self) -> Iterator[None]:
        before: list[tuple[nn.Module, str, Any]] = []

        def follow(*_: Any) -> None:
            for part, read, rest in self.rest:
                for name, size in read(part).items():
                    if size != rest[name]:
                        before.append((part, name, getattr(part, name)))
                        setattr(part, name, size)

        hook = self.module.register_forward_pre_hook(follow, prepend=True)
        try:
            yield
        finally:
            hook.remove()
            for part, name, size in before:
                setattr(part, name, size)
