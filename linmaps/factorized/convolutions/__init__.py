"""Convolutions with factorized kernels, and of bounded norm.  x [B, in, *space], kernels [out, in, *k].

In reading order:
    axes       strides, padding and dilation along axes of space
    stages     a convolution as several small ones
    costs      what it costs either way
    kernels    a kernel put together from leaves, and decomposed into them
    products   itself, by the cheaper way
    reshaping  some of its channels and places, and one axis more
    conv       FactorizedConv
    fit_conv   factorize_conv: given kernels compressed
    symbols    the norm of a convolution from above, at all sizes
    lipschitz  LipschitzConv: kernels of bounded norm
"""
