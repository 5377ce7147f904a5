"""What a matrix is: the methods common to all, and what they share before any number is decomposed.

In reading order:
    cuts     rtol and atol of pseudo-inverses
    damping  regul: how much of the identity is added
    made     what a method makes, in its signature
    limits   what is too large to be dense
    inverses inverses of single layers, made once
    maps     maps with leading axes in place of vectors
    origin   the likelihood a matrix was made with
    handing  work that rooms above hand over
    stored   its space and numbers, and which vectors fit
    acting   products, solves and samples, of vectors and maps
    pmat     PMat: functions, spectrum and algebra beside these
    blocks   matrices that are blocks by layer
"""
