"""What a function is given: f, params and data, said by name before anything runs.  B batch, S shared, F features.

In reading order:
    doors      types and options; mixed dtypes by name
    check      finite data; an f that is not random and keeps its examples apart
    arguments  params and inputs as trees of dicts and detached tensors
    axes       where the examples are, and the format [B, S, F]
    data       data as batches (x, target)
"""
