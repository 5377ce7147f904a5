"""Convolutions with factorized kernels, and of bounded norm.  x [B, in, *space], kernels [out, in, *k].

In reading order:
    axes      strides, padding and dilation along axes of space
    stages    a convolution as several small ones
    kernels   a kernel put together from leaves, and decomposed into them
    conv      FactorizedConv
    fit_conv  factorize_conv: given kernels compressed
    symbols   the norm of a convolution from above, at all sizes
    lipschitz LipschitzConv: kernels of bounded norm
"""
