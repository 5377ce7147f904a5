"""What growth functions are given: mappings, functions, numbers of units, data, records that belong together.

In reading order:
    doors     mappings, functions and precision of what enters; numbers of units
    data      batches that are not empty, finite, with their names
    losses    losses by name
    buffers   running statistics and counters, kept apart
    followed  what comes of a layer's output, call by call
    named     layers by name: which is meant, and what is said where there is none
    records   of which kind is a record, of which pair, and is it whole?
"""
