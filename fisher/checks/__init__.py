"""What a function is given: f, params and data, said by name before anything runs.  B batch, S shared, F features.

In reading order:
    doors       what f, params, data and options must be
    mixed       mixed dtypes and devices, by name where torch refuses them
    finiteness  finite data, params and results
    agreement   equal to rounding, zero to rounding
    reverse_mode  reverse mode, of what no transform takes too
    purity      an f that is not random and keeps its examples apart
    placements  tensors that are spread over processes (DTensor)
    arguments   params and inputs as trees of dicts and detached tensors
    axes        where the examples are, and the format [B, S, F]
    ranks       which of several processes this is
    data        data as batches (x, target)
"""
