"""What a pair of layers is in the params, and in f.  x [B, ..., p] enters, h [B, ..., r] are hidden units, r -> o.

In reading order:
    pairs    Pair and Sum: two layers by their paths
    doors    what growth functions are given
    locate   the pair among the layers that `fisher` finds
    link     how the second layer reads the units of the first
    between  what f computes between the two, held against the pair
    losses   losses by name
    buffers  running statistics, kept apart
    observe  one batch watched: inputs, units, gradients
"""
