"""Functions of trees as compiled graphs of tensor operations.

In reading order:
    tracing     while torch traces a function
    closures    what a function closes over
    watching    what no graph can hold
    merging     what is done twice, done once
    recording   a function as a graph, or why it has none
    backends    a graph compiled
    latest      what was made for a key
    transforms  graphs of a function, of its derivatives, under vmap
    calls       compiled, and the function that it returns
"""
