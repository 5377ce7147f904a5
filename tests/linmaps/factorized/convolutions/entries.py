"""Kernels of convolutions entry by entry, in numpy: what contractions are held against."""

import numpy as np


def by_index(spec, params):
    """The kernel [out, in, *k], of joint ones [L, out, in, *k]."""
    p = {name: t.numpy() for name, t in params.items()}
    if spec.factorization == "dense":
        return p["kernel"]
    layer = "l" * (spec.n_layers > 1)
    modes = layer + "abcde"[: len(spec.kernel_size) + 2]
    count, to = len(modes), layer + modes[-1] + modes[len(layer) : -1]
    if spec.factorization == "cp":
        terms = ",".join(f"{m}r" for m in modes)
        return np.einsum(f"r,{terms}->{to}", p["weights"], *(p[f"U{k}"] for k in range(count)))
    if spec.factorization == "tucker":
        terms = ",".join(f"{m}{m.upper()}" for m in modes)
        return np.einsum(f"{modes.upper()},{terms}->{to}", p["core"], *(p[f"U{k}"] for k in range(count)))
    bonds = "tuvwxyz"
    terms = ",".join(f"{bonds[k]}{m}{bonds[k + 1]}" for k, m in enumerate(modes))
    return np.einsum(f"{terms}->{to}", *(p[f"A{k}"] for k in range(count)))
