"""Watching f run: which tensors hold data, which are made of leaves alone, and which call uses what.

In reading order:
    known     tensors that hold data, or live in transforms of f's own
    followed  the views of what a call makes of a leaf in another guise
    tape      what no data enter, step by step, to be played again
    following a run along the way of one that was watched before
    made      the calls of leaves and constants alone
    watch     every torch call that f makes, under the rules
"""
