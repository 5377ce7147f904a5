"""A file of the safetensors format: eight bytes, a header of JSON, the numbers.

It is written beside and renamed, so that a save that fails leaves the old file, and who reads meanwhile reads one of the two.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import stat
import struct
from collections.abc import Mapping
from typing import IO, Any

from torch import Tensor

from linmaps.trees.files.numbers import buffer, checksum, described, raw, raw_entry

Text = dict[str, str]


def write(path: str, tensors: Mapping[str, Tensor], about: Text, layout: str) -> None:
    """Write the tensors and what is said of them to a file; one tensor at a time is in memory.  OSError that names the file."""
    given, path = path, os.path.realpath(path)
    folder, name = os.path.split(path)
    beside = os.path.join(folder, f".{name}.{secrets.token_hex(8)}.part")
    try:
        with open(beside, "xb") as file:
            _fill(file, tensors, about, layout)
            file.flush()
            os.fsync(file.fileno())
        if os.path.exists(path):  # its rights stay
            shutil.copymode(path, beside)
        os.replace(beside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        if isinstance(error, OSError) and error.filename == beside:  # a name that nobody gave
            why = f"{error.strerror}, where a file is made beside {given} and renamed, expected a folder to write in"
            raise OSError(error.errno, why, given) from None
        raise
    _sync(folder)


def check_writable(path: str) -> None:
    """Raise an OSError with the cure where no file can stand at a path, or something else does.

    >>> check_writable("/dev/null")
    Traceback (most recent call last):
    OSError: /dev/null: is a device, expected a file or a free name; a save would put a file in its place: give another path
    """
    folder = os.path.dirname(os.path.realpath(path))
    if kind := other(path):
        cure = "name a file in it" if kind == "a folder" else "a save would put a file in its place: give another path"
        raise (IsADirectoryError if kind == "a folder" else OSError)(
            f"{path}: is {kind}, expected a file or a free name; {cure}"
        )
    if os.path.basename(path) == "":
        raise FileNotFoundError(f"{path}: ends in a separator, expected the name of a file")
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise NotADirectoryError(f"{path}: {folder} is a file, expected a folder; give another path")
    if not os.path.exists(folder):
        raise FileNotFoundError(
            f"{path}: there is no folder {folder}, expected one; make it by os.makedirs, or give another"
        )


KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def other(path: str) -> str | None:
    """What stands at a path, links followed, if it is no file; None where it is one, or nothing is there.

    >>> other(os.sep), other(__file__)
    ('a folder', None)
    """
    try:
        return KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
    except OSError:
        return None


def _fill(file: IO[bytes], tensors: Mapping[str, Tensor], about: Text, layout: str) -> None:
    order = sorted(tensors, key=lambda name: -min(8, tensors[name].itemsize))  # widest first: all are aligned
    entries = {name: described(tensors[name]) for name in tensors}
    place, start = {}, 0
    for name in order:
        dtype, shape, size = raw_entry(tensors[name])
        place[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}
        start += size

    def header() -> bytes:  # checksums have one length: it is written again over itself once they are known
        table = json.dumps(entries)
        said = {**about, "tensors": table, "layout": layout, "checksum": checksum((table + layout).encode())}
        text = json.dumps({"__metadata__": said} | place).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    file.write(header())
    for name in order:
        t = raw(tensors[name])
        data = buffer(t)
        entries[name]["crc32"] = checksum(data)
        file.write(data)
    file.seek(0)
    file.write(header())


def _sync(folder: str) -> None:
    """Make the new name last, where folders can be synchronized."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def checked_text(said: Any) -> tuple[Any, Any]:
    """(the table of tensors, the layout) of what a header says; ValueError where they are not what was written.

    >>> checked_text({"tensors": "{}", "layout": "3", "checksum": checksum(b"{}3")})
    ({}, 3)
    """
    table, layout = said["tensors"], said["layout"]
    if checksum((table + layout).encode()) != said["checksum"]:
        raise ValueError(f"the header is not the one that was written, expected checksum {said['checksum']}")
    return json.loads(table), json.loads(layout)
