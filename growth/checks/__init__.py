"""What growth functions are given: mappings, functions, numbers of units, data, records that belong together.

In reading order:
    doors    mappings, functions and precision of what enters; numbers of units
    data     batches that are not empty, finite, with their names
    losses   losses by name
    buffers  running statistics and counters, kept apart
    records  of which kind is a record, of which pair, and is it whole?
"""
