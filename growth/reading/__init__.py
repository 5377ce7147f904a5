"""What a pair of layers is in the params, and in f.  r inputs of the first, p hidden units, q outputs of the second.

In reading order:
    activations  elementwise maps, at values and at 0
    pairs        Pair and Sum: two layers by their paths
    gated_pairs  Gated: products of two layers
    along        leaves of norms and of the activation that grow along, and the way from layer to layer
    layers       the two of a pair as they are in params
    leaves       where hidden units are, leaf by leaf
    transformers/  attention layers cut into heads, residual streams
    maps         pooling and padding of each unit's map
    locate       the pair among the layers that `fisher` finds; embeddings as layers of unit vectors
    link         how the second layer reads the units of the first
    calls        the torch calls between the two, by name
    probe        one hidden unit more, to ask f with
    between      what f computes between the two, held against the pair
    products     the products of a gated pair, held against it
    once         Reading: all this of a pair, kept for later passes
    observe      one batch watched: inputs, units, gradients
"""
