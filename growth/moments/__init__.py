"""First-order statistics of a pair: moments of inputs, units and gradients, one pass over data.

In reading order:
    norms         moments of inputs as a batch norm measures new units
    gates         moments of units whose gate rows are given
    first_order   Statistics: moments of inputs, units and gradients, as data
    across        sums over the samples of several processes
    accumulation  `statistics`: one pass that makes them
    solvers       positive semi-definite solves at the accuracy of the moments
    metric        metrics of outputs, E shrunk, and of inputs
    exact         the exact Fisher matrix of the outputs in place of E
"""
