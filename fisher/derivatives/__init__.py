"""Derivatives: f in a form that forward and reverse mode differentiate alike.

In reading order:
    plain    torch's own layers off their fused paths
    forward  jvp
"""
