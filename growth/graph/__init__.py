"""Graphs of layers: new edges, new nodes, wider nodes.

In reading order:
    nodes        Node and Graph
    statistics   moments of all nodes
    expansions   what can be added, as data
    closed_form  the best change and units of a node, new edges
    table        candidates with their gains
    signs        the better sign of units at a kink
    step         one step taken
    carried      states go along
"""
