"""A file of the safetensors format: eight bytes, a header of JSON, the numbers.

It is written beside and renamed, so that a save that fails leaves the old file, and who reads meanwhile reads one of the two.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import struct
from collections.abc import Mapping
from typing import IO, Any

from torch import Tensor

from linmaps.trees.files.numbers import buffer, checksum, described, raw, raw_entry

Text = dict[str, str]


def write(path: str, tensors: Mapping[str, Tensor], about: Text, layout: str) -> None:
    """Write the tensors and what is said of them to a file; one tensor at a time is in memory.  OSError as of `open`."""
    path = os.path.realpath(path)
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
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
        raise
    _sync(folder)


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
