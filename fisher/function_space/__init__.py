"""Function space: Jacobians and kernels.  B examples, C outputs, d parameters; J [B, C, d].

In reading order:
    pfmap      what maps between the two spaces share, and the dense one
    rows       the rows of a Jacobian, tried and held against autograd
    implicit   a Jacobian as two functions
    jacobians  jacobian
    gradients  example_gradients
    fmat       matrices on function space
    kernels    gram, the tangent kernel
"""
