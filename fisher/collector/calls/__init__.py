"""Torch calls around the rules: what a leaf goes through before a rule meets it, and what stands for a call that is wrong.

In reading order:
    views      casts, copies, cuts and reshapes of a leaf
    bags       bags of embeddings
    recurrent  recurrent layers step by step
    batching   torch calls whose batching rules are wrong or missing, and what stands for them
    chains     calls that lead from the output of one layer to the input of another
    plain      calls that write into nothing, keep nothing by hooks, and have a rule for every transform
"""
