"""From uses to blocks: which leaves share one, and what it takes.

In reading order:
    uses      Use and Layer: one call, and the calls that share leaves
    through   leaves that make weights, and these weights, as layers
    tied      weights that are used as W and as W'
    grouping  all leaves, or parts of leaves, to layers
    sizes     limits, and bytes of blocks
"""
