"""Tensors as bytes, and back: every dtype and device, the order of the axes in memory, and a checksum of the bits."""

from __future__ import annotations

import ctypes
import zlib
from typing import Any

import torch
from torch import Tensor
from torch.func import debug_unwrap

from linmaps.trees.files.containers import DTYPES

NAMES = {  # of the format; other dtypes are stored as integers of their width, complex ones as pairs
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
BY_WIDTH = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)


def check_storable(t: Tensor, where: str) -> None:
    """Raise a TypeError with the cure unless the tensor has numbers of its own, in this process, that no transform holds."""
    got, cure = "", ""
    if hasattr(t, "full_tensor"):
        got, cure = "a DTensor", "save t.full_tensor(), or on each rank t.to_local() in a file of its own"
    elif debug_unwrap(t, recurse=True) is not t:
        got, cure = "a tensor inside of a transform", "save outside of vmap, grad and jacrev"
    elif type(t) not in PLAIN:
        got, cure = f"a {type(t).__name__}", "save the plain tensors that it is made of"
    elif t.layout != torch.strided:
        got, cure = f"a tensor of {t.layout}", "save t.to_dense()"
    elif t.is_quantized:
        got, cure = f"a tensor of {t.dtype}", "save t.dequantize()"
    elif t.is_meta:
        got, cure = "a tensor on the meta device", "it has no numbers: save one that does"
    if got:
        raise TypeError(f"{where}: got {got}, expected a dense tensor with numbers; {cure}")


def described(t: Tensor) -> dict[str, Any]:
    """Dtype and device as text, and the strides where the axes lie in another order than the numbers in the file.

    >>> described(torch.ones(2, 3).mT)
    {'dtype': 'float32', 'device': 'cpu', 'strides': [1, 3], 'crc32': '00000000'}
    """
    found = {"dtype": str(t.dtype).removeprefix("torch."), "device": str(t.device)}
    dense = torch.empty_like(t, device="meta")  # as torch keeps the order of the axes, without gaps and repeats
    order = {} if dense.is_contiguous() else {"strides": list(dense.stride())}
    return found | order | {"crc32": "00000000"}


def raw(t: Tensor) -> Tensor:
    """The numbers on the CPU, row-major, of a dtype that the format has."""
    t = t.detach().resolve_conj().resolve_neg().to("cpu").contiguous()
    if t.is_complex():
        t = torch.view_as_real(t)
    return t if t.dtype in NAMES else t.view(BY_WIDTH[t.itemsize])


def raw_entry(t: Tensor) -> tuple[str, list[int], int]:
    """(name of the dtype in the format, shape, bytes) of what `raw` gives, without making it.

    >>> raw_entry(torch.ones(2, dtype=torch.complex128))
    ('F64', [2, 2], 32)
    """
    parts = (2,) if t.is_complex() else ()
    dtype = t.dtype.to_real() if t.is_complex() else t.dtype
    return NAMES[dtype if dtype in NAMES else BY_WIDTH[dtype.itemsize]], [*t.shape, *parts], t.numel() * t.itemsize


def buffer(t: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU, which must outlive it."""
    size = t.numel() * t.itemsize
    return memoryview((ctypes.c_char * size).from_address(t.data_ptr())) if size else memoryview(b"")


def checksum(data: Any) -> str:
    """CRC-32 as eight digits.

    >>> checksum(b"")
    '00000000'
    """
    return f"{zlib.crc32(data):08x}"


def restored(t: Tensor, entry: dict[str, Any], device: torch.device | str | None, where: str) -> Tensor:
    """The tensor that was stored: ValueError where the bits are others, or its device is not here."""
    dtype = DTYPES[entry["dtype"]]
    if checksum(buffer(t.contiguous())) != entry["crc32"]:
        raise ValueError(f"{where}: the bits are not those that were written, expected checksum {entry['crc32']}")
    t = t.clone()  # memory of its own, aligned as torch aligns: that of the file goes when the file is closed
    t = torch.view_as_complex(t) if dtype.is_complex else t
    t = t if t.dtype == dtype else t.view(dtype)
    if "strides" in entry:
        t = torch.empty_strided(t.shape, entry["strides"], dtype=dtype).copy_(t)
    wanted = entry["device"] if device is None else device
    try:
        return t.to(wanted)
    except (RuntimeError, AssertionError, NotImplementedError):
        got = f"a tensor saved on {wanted}" if device is None else f"device={str(wanted)!r}"
        raise ValueError(f"{where}: got {got}, expected a device that is here; give load(..., device='cpu')") from None
