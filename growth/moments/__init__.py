"""First-order statistics of a pair: moments of inputs, units and gradients, one pass over data.

In reading order:
    first_order  Statistics and `statistics`
    solvers      positive semi-definite solves at the accuracy of the moments
    metric       metrics of outputs: E, shrunk
    exact        the exact Fisher matrix of the outputs in place of E
"""
