"""First-order statistics of a pair: moments of inputs, units and gradients, one pass over data.

In reading order:
    first_order  Statistics and `statistics`
    solvers      positive semi-definite solves at the accuracy of the moments
    metric       metrics of inputs and outputs, the Fisher matrix of the outputs
"""
