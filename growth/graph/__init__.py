"""Graphs of layers: new edges, new nodes, wider nodes.

In reading order:
    nodes       Node and Graph
    statistics  moments of all nodes
    growth      the best change and units of a node, new edges
    step        candidates compared, one taken
"""
