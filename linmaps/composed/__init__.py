"""Composed: maps made of maps.  W [in, out]; the params of a part are a subtree.

In reading order:
    composite  what all maps made of maps share
    compose    one part: transposed, scaled, with a bias
    product    several parts, one after the other
    sum        several parts, side by side
    block      several parts, in a grid
    cell       two parts and an activation: one step of a state
    recurrent  `rnn`: cells over time
"""
