"""New units of gated pairs where no gate rows are given: candidates, and steps from the best of them.

In reading order:
    rows      candidates for the rows of a gate
    ascent    how what a unit explains moves with its gate row, one pass over data
    search    the best units over rows
"""
