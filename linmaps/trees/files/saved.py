"""Save and load: any tree and any record in a file of tensors with a readable header, without pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from linmaps.trees.files.layouts import Writer
from linmaps.trees.files.numbers import restored
from linmaps.trees.files.readers import Reader
from linmaps.trees.files.version import FORMAT, __version__
from linmaps.trees.files.written import check_writable, checked_text, other, write

T = TypeVar("T")
AGAIN = "save it again, or take a copy of the file"


def save(tree: Any, path: str | os.PathLike[str], *, given: Iterable[str] = ()) -> None:
    """Write a tree to a file: params, a matrix, statistics, layers, specs, states, in any containers, by safetensors.

    The tensors lie in the file under their dotted paths, for any reader of safetensors.  Its header says in JSON how they are
    put together: containers with keys of any hashable simple type, records and specs by the name of their class, numbers, text,
    dtypes, the version.  No code is in it, and none is run by `load` but that of registered classes.  Saved of a tensor are its
    bits, dtype, device and the order of its axes in memory; what is one tensor at two places stays one.  nn.Parameters are
    taken detached.

    path: written beside and renamed: where it fails, the old file stays as it was, and readers see one of the two.
    given: dotted paths of what the file leaves out (functions, objects of foreign classes); `load` is given them again.
    A posterior is saved without its function, and gets it back by `on_function(f)`.

    Classes of records are registered by `trees.record`, those of settings (dataclasses, named tuples, enums), and functions, by
    `trees.static`.
    Raises TypeError that names path and cure for functions and objects that are not registered, arrays of numpy, modules, and
    tensors without numbers of their own (DTensor, sparse, meta, inside of a transform); ValueError for a path in `given` that
    is not there, and for a container that holds itself; OSError where there is no folder, or no file stands at the path but a
    folder, a pipe or a device.

    >>> import tempfile, torch
    >>> path = tempfile.mkdtemp() + "/state.safetensors"
    >>> save({"w": torch.ones(2), ("layer", 0): [1, None, torch.float16]}, path)
    >>> load(path)
    {'w': tensor([1., 1.]), ('layer', 0): [1, None, torch.float16]}
    """
    name, wanted = _path(path), _names(given)
    check_writable(name)
    writer = Writer(wanted)
    layout = writer.whole(tree)
    if unknown := sorted(set(wanted) - writer.left_out):
        raise ValueError(f"given: got {unknown}, expected paths of what is in the tree, as 'curvature.f'")
    about = {"kind": kind_of(layout), "written_by": f"linmaps {__version__}", "format_version": str(FORMAT)}
    write(name, writer.tensors, about, json.dumps(layout))


def load(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    given: Mapping[str, Any] | None = None,
) -> Any:
    """The tree that `save` wrote: the same structure, settings, bits and dtypes.

    device: where the tensors go; None: to the one that they were saved from.
    given: what the file left out, by its dotted path, as `{"curvature.f": f}`.

    A file of an older version loads where the fields that it lacks have defaults.
    Raises FileNotFoundError, OSError for what is no file; ValueError that names the path and the cure for a file that is cut
    off, changed (checksums are compared), of another program or of a newer version, that names a class which is not registered
    here, or lacks fields of it, and for a device that is not here.

    >>> import tempfile, torch, linmaps
    >>> path, spec = tempfile.mkdtemp() + "/map.safetensors", linmaps.Spectral(4, 2)
    >>> save((spec, spec.init(torch.Generator().manual_seed(0))), path)
    >>> again, params = load(path)
    >>> again == spec, again.effective_W(params).shape
    (True, torch.Size([4, 2]))
    """
    name, device = _path(path), _device(device)
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise TypeError(f"given: got {type(given).__name__}, expected a mapping {{path: object}}")
    if kind := other(name):
        raise (IsADirectoryError if kind == "a folder" else OSError)(
            f"{name}: is {kind}, expected a file that linmaps.trees.save wrote"
            + ("; name the file in it" if kind == "a folder" else "; copy it to a file")
        )
    if not os.path.isfile(name):
        raise FileNotFoundError(f"{name}: there is no such file, expected one that linmaps.trees.save wrote")
    try:
        return _read(name, device, given)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{name}: {error if isinstance(error, ValueError) else f'cannot be read: {error!r}; {AGAIN}'}"
        ) from error


def load_one(cls: type[T], path: str | os.PathLike[str], device: torch.device | str | None = None) -> T:
    """What `load` gives, which must be of this class: ValueError for another.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/list.safetensors"
    >>> save([1], path)
    >>> load_one(list, path)
    [1]
    """
    made = load(path, device=device)
    if not isinstance(made, cls):
        raise ValueError(
            f"{os.fspath(path)}: got {type(made).__name__}, expected {cls.__name__}; read other files by linmaps.trees.load"
        )
    return made


def _read(name: str, device: Any, given: Mapping[str, Any]) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(name, framework="pt", device="cpu") as file:
            said = file.metadata() or {}
            _check_origin(said)
            table, layout = checked_text(said)

            def take(tensor: str) -> Tensor:
                return restored(file.get_tensor(tensor), table[tensor], device, tensor)

            reader = Reader(take, given, said["written_by"])
            made = reader.of(layout)
    except SafetensorError as error:
        raise ValueError(
            f"got a file that is cut off, damaged or no file of safetensors ({error}), expected one that linmaps.trees.save "
            f"wrote; {AGAIN}"
        ) from None
    if unknown := sorted(set(given) - reader.used):
        raise ValueError(f"given: got {unknown}, expected what the file left out, {sorted(reader.used)}")
    return made


def _check_origin(said: Mapping[str, str]) -> None:
    if "format_version" not in said or not said["format_version"].isdecimal():
        raise ValueError(
            "got a file of safetensors without a layout, expected one that linmaps.trees.save wrote; read its tensors by "
            "safetensors.torch.load_file"
        )
    if int(said["format_version"]) > FORMAT:
        raise ValueError(
            f"got a file of format {said['format_version']}, written by {said.get('written_by', '?')}, expected up to {FORMAT}, "
            f"as linmaps {__version__} reads; install that version"
        )


def kind_of(layout: Any) -> str:
    """What a layout is of, in a word.

    >>> kind_of({"record": "fisher.pmat.layered.kfac:PMatKFAC", "fields": {}}), kind_of([1])
    ('fisher.PMatKFAC', 'list')
    """
    if not isinstance(layout, dict):
        return type(layout).__name__
    kind, body = next(iter(layout.items()))
    return f"{body.partition('.')[0]}.{body.rpartition(':')[2]}" if kind == "record" else kind


def _path(path: Any) -> str:
    if not isinstance(path, (str, os.PathLike)) or not str(path):
        raise TypeError(f"path: got {path!r}, expected the name of a file, text or a pathlib.Path")
    return os.fsdecode(path)


def _device(device: Any) -> torch.device | None:
    try:
        return None if device is None else torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device: got {device!r}, expected the name of a device, as 'cpu' or 'cuda:0'") from None


def _names(given: Any) -> list[str]:
    found = None if isinstance(given, (str, bytes)) or not isinstance(given, Iterable) else list(given)
    if found is None or not all(isinstance(name, str) for name in found):
        raise TypeError(f"given: got {given!r}, expected dotted paths, as ['curvature.f']")
    return found
