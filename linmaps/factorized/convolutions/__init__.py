"""Convolutions with factorized kernels.  x [B, in, *space], kernels [out, in, *k].

In reading order:
    axes      strides, padding and dilation along axes of space
    stages    a convolution as several small ones
    kernels   a kernel put together from leaves, and decomposed into them
    conv      FactorizedConv
    fit_conv  factorize_conv: given kernels compressed
"""
