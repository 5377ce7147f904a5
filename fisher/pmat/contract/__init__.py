"""What a matrix is: the methods common to all, and what they share before any number is decomposed.

In reading order:
    base    PMat
    maps    maps with leading axes in place of vectors
    cuts    rtol and atol of pseudo-inverses
    limits  what is too large to be dense
    origin  the likelihood a matrix was made with
    blocks  matrices that are blocks by layer
    handed  work that rooms above hand over
"""
