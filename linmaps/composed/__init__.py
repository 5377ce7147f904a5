"""Composed: maps made of maps.  W [in, out]; the params of a part are a subtree.

In reading order:
    composite  what all maps made of maps share
    compose    one part: transposed, scaled, with a bias
    assembled  several parts: products, sums, blocks
    recurrent  cells of two maps, and `rnn` over time
"""
