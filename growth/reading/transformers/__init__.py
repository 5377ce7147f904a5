"""What growth reads of transformers: attention layers cut into heads, and the stream that layers read and write.

In reading order:
    heads    Heads: an attention layer, and how its axes are cut into heads
    streams  the leaves of a residual stream by their roles
"""
