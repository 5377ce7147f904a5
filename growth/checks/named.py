"""Layers by name in params: which name a path is, and what is said where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from linmaps import trees
from linmaps.trees import path_str
from linmaps.trees.keys import Path, names


def layer_name(found: Mapping[str, Path], path: str | Path) -> str:
    """The name of the layer at a path, which may be that of its weight; found: paths of leaves by name.

    >>> layer_name({"0.weight": ("0", "weight")}, "0.weight"), layer_name({"w": ("w",)}, "w")
    ('0', 'w')
    """
    name = path_str(path)
    return name.removesuffix(".weight") if name in found and f"{name}.weight" not in found else name


def no_layer(params: Any, name: str) -> ValueError:
    """What is said of a layer that params do not have.

    >>> import torch
    >>> raise no_layer({"a": {"parametrizations": {"weight": {"original": torch.ones(1)}}}}, "a")
    Traceback (most recent call last):
    ValueError: a: its weight is parametrized (a.parametrizations.weight.original), expected a leaf a.weight; ...
    """
    paths = trees.paths(params)
    found = sorted(names(paths))
    made = [s for s in found if s.startswith(f"{name}.parametrizations.weight.")]
    if made:
        return ValueError(
            f"{name}: its weight is parametrized ({', '.join(made)}), expected a leaf {name}.weight; take that away, "
            "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight'), before fisher.functional, or enlarge what the "
            "weight is made of by growth.add_parameters"
        )
    twice = [tuple(p) for p in paths if path_str(p) in (f"{name}.weight", name)]
    if len(twice) > 1:
        return ValueError(
            f"{name}: {len(twice)} leaves of params are {path_str(twice[0])}, at the keys {twice}, expected one; keep one, in "
            "nested or in flat dicts"
        )
    layers = list(dict.fromkeys(s.removesuffix(".weight") for s in found if s.endswith(".weight")))
    return ValueError(
        f"{name}: no such layer in params, expected a leaf {name}.weight; layers with a weight: {layers[:12]}; "
        f"leaves: {found[:12]}"
    )
