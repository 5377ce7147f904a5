"""Trees of tensors: vector-space operations, paths, flat order, records.  The one room that knows the pytree library.

A tree is any optree-registered pytree of tensors.  Vectors in parameter space are trees shaped like `params`; a flat
order exists only in `ravel`: the leaf order of optree (dict keys sorted, as in JAX), row-major inside a leaf.

In reading order:
    tree       a tree in a signature
    keys       paths as tuples of keys and as dotted strings
    nodes      what a container holds, one subtree read or replaced
    mappings   mappings of any type in place of dicts
    registry   what a file may name
    records    frozen dataclasses that are pytrees
    seals      what is no tensor in an input
    shapes     is this tree one of those?
    algebra    the vector space of trees
    ensembles  equal trees along a new leading axis
    printed    numbers and records as text: lines and tables
    flat       one vector [d] of a tree, and back
    files/     trees in files: save, load
    graphs     functions as compiled graphs
"""

from linmaps.trees.algebra import add, axpy, dot, flatten, leaves, map, norm, scale, sub, zeros_like
from linmaps.trees.ensembles import stack, unstack
from linmaps.trees.files.saved import load, save
from linmaps.trees.flat import Layout, ravel, unravel
from linmaps.trees.graphs.calls import Compiled, compiled
from linmaps.trees.keys import path_str
from linmaps.trees.nodes import get, one_level, paths, replace
from linmaps.trees.records import record, static
from linmaps.trees.shapes import check_like

__all__ = [
    "Compiled",
    "Layout",
    "add",
    "axpy",
    "check_like",
    "compiled",
    "dot",
    "flatten",
    "get",
    "leaves",
    "load",
    "map",
    "norm",
    "one_level",
    "path_str",
    "paths",
    "ravel",
    "record",
    "replace",
    "save",
    "scale",
    "stack",
    "static",
    "sub",
    "unravel",
    "unstack",
    "zeros_like",
]


def __dir__() -> list[str]:
    return sorted(__all__)
