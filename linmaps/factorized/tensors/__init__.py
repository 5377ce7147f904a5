"""Tensors of few parameters: how many, how to multiply them cheaply, how to find them.

In reading order:
    ranks       ranks from a number of parameters
    compat      ranks as tensorly-torch rounds them
    plan        chains of products, counted before they are run
    contract    the chains run
    norms       scales at initialisation
    decompose   CP, Tucker and tensor trains of a given tensor
    randomized  the same of sketches
"""
