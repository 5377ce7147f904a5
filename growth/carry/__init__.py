"""What goes along when params change: optimizer states, averages, statistics, layers, Fisher matrices.

In reading order:
    factors      state that is not of its parameter's shape
    orders       entries in the order of another tree
    layouts      layers and layouts of the grown params
    first_order  statistics of the grown params
    sources      where the entries of a grown matrix come from
    matrices     Fisher matrices of the grown params
    carrier      one walk through a state of any kind
    state        grow_like and prune_like of any tree
    optimizers   a live torch.optim
"""
