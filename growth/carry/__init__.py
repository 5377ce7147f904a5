"""What goes along when params change: optimizer states, averages, statistics, layers, Fisher matrices.

In reading order:
    state       grow_like and prune_like of any tree
    orders      entries in the order of another tree
    layouts     layers and layouts of the grown params
    matrices    Fisher matrices of the grown params
    optimizers  a live torch.optim
"""
