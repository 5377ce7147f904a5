"""Surgery: enlarged, narrowed and rescaled params; another tree, the old one stays valid.

In reading order:
    resize       leaves with more rows or columns
    same         is the function the same?
    silenced     units that lead nowhere
    classes      more outputs of a layer, the old ones kept
    enlarge      grow: new units and a change, at given amplitudes
    heads        wider heads of attention, and more of them, the function kept
    widening     copies of units, the function kept
    stream_width  a wider residual stream, the function kept
    deepening    a layer more, the function kept
    rescaling    units scaled, the function kept
    pruning      units (or heads) cut, and put back
    head_places  where the old entries of grown attention layers are
    moves        where each entry of the old params is in the new
"""
