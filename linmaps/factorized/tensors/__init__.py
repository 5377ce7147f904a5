"""Tensors of few parameters: how many, how to multiply them cheaply, how to find them.

In reading order:
    ranks          ranks from a number of parameters
    tltorch_ranks  ranks as tensorly-torch rounds them
    plan           chains of products, counted before they are run
    multilinear    unfoldings, products with one mode, Khatri-Rao products
    chains         the chains run
    norms          inner products and squared norms
    trains         a given tensor as a tensor train
    tucker         as a core and a basis for each mode
    cp             as a sum of rank-one terms
    randomized     trains and Tucker tensors from sketches
    compressed     sums of rank-one terms by way of a sketched core
"""
