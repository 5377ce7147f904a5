"""Brute force: definitions written out with loops and plain autograd, for the laws to compare with."""

import torch

from linmaps import trees


def jacobians(f, params, x):
    """J [B, K, d]: for each example the Jacobian of its flattened output, by one autograd.grad per entry."""
    vector, unravel = trees.ravel(trees.map(lambda t: t.detach(), params))
    rows = []
    for b in range(len(x)):
        v = vector.clone().requires_grad_()
        y = f(unravel(v), x[b : b + 1])[0].reshape(-1)
        rows.append(torch.stack([torch.autograd.grad(t, v, retain_graph=True, allow_unused=True)[0] for t in y]))
    return torch.stack(rows)


def output_fisher(y, likelihood, class_axis=1):
    """H [K, K] of one example's output y (no batch axis), flattened row-major."""
    if likelihood == "gaussian":
        return torch.eye(y.numel(), dtype=y.dtype)
    z = y.movedim(class_axis - 1 if class_axis > 0 else class_axis, -1)
    where = torch.arange(y.numel()).reshape(y.shape).movedim(class_axis - 1 if class_axis > 0 else class_axis, -1)
    h = torch.zeros(y.numel(), y.numel(), dtype=y.dtype)
    for logits, index in zip(z.reshape(-1, z.shape[-1]), where.reshape(-1, z.shape[-1])):
        p = torch.softmax(logits, 0)
        h[index[:, None], index[None]] = torch.diag(p) - torch.outer(p, p)
    return h


def fisher_matrix(f, params, x, likelihood, class_axis=1):
    """1/B sum over b of J_b' H_b J_b, `[d, d]`."""
    J, y = jacobians(f, params, x), f(params, x)
    return sum(j.T @ output_fisher(t, likelihood, class_axis) @ j for j, t in zip(J, y)) / len(x)


def block_mask(layers):
    """True where two parameters lie in the same layer."""
    label = torch.zeros(layers.numel(), dtype=torch.long)
    offsets = layers.layout.offsets
    for number, layer in enumerate(layers):
        for n in layer.leaves:
            label[offsets[n] : offsets[n + 1]] = number
    return label[:, None] == label[None]
