"""Deepen a network by a layer that is the identity.  p outputs of the layer before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from growth.checks.doors import door
from growth.reading.layers import Layer, layer_at
from growth.reading.pairs import LayoutName, check_layout
from growth.surgery.same import Deeper, Function, applied, asked, same_function
from linmaps import trees
from linmaps.trees import path_str
from linmaps.trees.keys import Path
from linmaps.trees.tree import Tree


@door("f")
def deepen(
    params: Tree,
    after: str | Path,
    name: str,
    *,
    kernel: Sequence[int] | None = None,
    bias: bool | None = None,
    layout: LayoutName = "out_in",
    f: Function = None,
    x: Any = None,
) -> Tree:
    """`params` with an identity layer `name` behind the layer `after`.

        weight = I [p, p] (of a convolution [p, p, *kernel], zero but at the centre tap),   bias = 0 [p]

    f must apply it there: `x = act(linear(params[after], x)); x = act(linear(params[name], x))`.  The function is exactly
    the same where act(act(z)) = act(z): the identity, ReLU; for a smooth activation leave out the one behind the new
    layer.  A convolution needs stride 1 and padding (size - 1) / 2 on each axis.

    after: path of a layer.  The new one stands right behind it in the same dict, nested or flat with dotted keys.
    name: its key there, or its whole path.  kernel: of a convolution, odd sizes; None: that of `after`.  bias: None:
    where `after` has one.  layout: how the weight of `after` is stored, "in_out" of x @ W, of tables and of transposed
    convolutions; the new one, which is the same either way, is of its kind (behind a table a dense layer).
    f, x: the function, which finds in params whether the layer is there, and some inputs, on which it is compared, as in `widen`.
    The other leaves are the same tensors: a live optimizer gets the new ones by `add_param_group`.  `into_module` makes no new
    parts: of an nn.Module put a layer of these sizes at `name` and call it in forward, then `growth.into_module(module, deeper)`.

    Raises ValueError (path, got, expected) if there is no such layer, if there is something at `name` already, for even
    kernels, where layers stand in a list; then its numbers, which are other layers' paths, would change; and where f is another
    function, or does not read the new layer.
    Source: Chen, Goodfellow, Shlens, "Net2Net: accelerating learning via knowledge transfer" (2016).

    >>> import torch
    >>> deepen({"a": {"weight": torch.ones(2, 3), "bias": torch.ones(2)}}, "a", "a2")["a2"]
    {'weight': tensor([[1., 0.],
            [0., 1.]]), 'bias': tensor([0., 0.])}
    """
    held = asked(f, x, None)
    check_layout(layout)
    layer = layer_at(params, after, layout)
    new = {"weight": _identity(layer, kernel)}
    if (layer.bias is not None) if bias is None else bias:
        new["bias"] = layer.weight.new_zeros(layer.weight.shape[0])
    bare = layer.name == path_str(after)
    if bare and "bias" in new:
        raise ValueError(f"bias: got True, expected False or None, since {layer.name} is a weight alone")
    nested = not bare and layer.weight_path[-1] == "weight"
    above = layer.weight_path[: -2 if nested else -1]
    own = layer.weight_path[-2 if nested else -1]
    node = trees.get(params, above)
    holder = trees.get(params, layer.weight_path[:-1])
    if not isinstance(node, dict) or not isinstance(holder, dict):
        raise ValueError(
            f"{layer.name}: got a {type(holder if isinstance(node, dict) else node).__name__} around it, expected dicts, in "
            "which the new layer gets a key; put the identity of deepen({'a': layer}, 'a', 'b') where it belongs"
        )
    own = own if nested or bare else own.removesuffix(".weight")
    key = _key(name, path_str(after), own, node)
    entries: dict[str, Any] = {key: new["weight"]} if bare else {f"{key}.{n}": t for n, t in new.items()}
    if nested:
        entries = {key: type(holder)(new)}
    at = max(i for i, k in enumerate(node) if _belongs(k, own)) + 1
    items = list(node.items())
    deeper = trees.replace(params, above, type(node)([*items[:at], *entries.items(), *items[at:]]))
    if held is not None:
        what = Deeper(path_str(after), name)
        same_function(held, params, deeper, what)
        old = set(trees.paths(params))
        applied(held, deeper, [p for p in trees.paths(deeper) if p not in old], what)
    return deeper


def _identity(layer: Layer, kernel: Sequence[int] | None) -> Tensor:
    p, sizes = layer.weight.shape[0], tuple(layer.weight.shape[2:]) if kernel is None else tuple(kernel)
    if len(sizes) != layer.weight.ndim - 2 or any(n % 2 == 0 for n in sizes):
        raise ValueError(
            f"kernel: got {sizes} behind {layer.name} {tuple(layer.weight.shape)}, expected {layer.weight.ndim - 2} odd sizes, "
            "so that there is a centre; give kernel="
        )
    eye = torch.eye(p, dtype=layer.weight.dtype, device=layer.weight.device)
    for n in sizes:
        eye = torch.nn.functional.pad(eye[..., None], (n // 2, n // 2))
    return eye


def _key(name: str, after: str, own: Any, node: dict[Any, Any]) -> str:
    """The key of the new layer in the dict that holds `after`, whose own key there is `own`."""
    parent, head = ("." + after).rpartition(".")[0], str(own).rpartition(".")[0]
    start = f"{parent.removeprefix('.')}."
    key = name.removeprefix(start) if parent else name
    if not key or "." in key:
        raise ValueError(f"name: got {name!r}, expected a key without dots, beside {after}")
    key = f"{head}.{key}" if head else key
    if any(_belongs(k, key) for k in node):
        raise ValueError(f"name: got {name!r}, but there is a {key!r} already beside {after}; choose another name")
    return key


def _belongs(key: Any, layer: Any) -> bool:
    """Whether a key is a layer's, or one of its leaves'."""
    return key == layer or (isinstance(key, str) and key.startswith(f"{layer}."))
