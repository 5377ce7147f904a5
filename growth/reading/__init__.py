"""What a pair of layers is in the params, and in f.  x [B, ..., p] enters, h [B, ..., r] are hidden units, r -> o.

In reading order:
    activations  elementwise maps, at values and at 0
    pairs        Pair and Sum: two layers by their paths
    layers       the two of a pair as they are in params
    records      of which pair is a record, and is it whole?
    doors        what growth functions are given
    locate       the pair among the layers that `fisher` finds
    link         how the second layer reads the units of the first
    calls        the torch calls between the two, by name
    probe        one hidden unit more, to ask f with
    between      what f computes between the two, held against the pair
    losses       losses by name
    data         batches that are not empty, finite, with their names
    buffers      running statistics, kept apart
    observe      one batch watched: inputs, units, gradients
"""
