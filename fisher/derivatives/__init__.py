"""Derivatives: f in a form that forward and reverse mode differentiate alike.

In reading order:
    plain          torch's own layers off their fused paths
    untransformed  products by autograd itself
    forward        jvp, and what stands in for it
"""
