"""Many processes on `torch.distributed`: sums over the data of all ranks, rows of all ranks, decompositions split over them.

    torch.distributed.init_process_group("gloo")                    # or "nccl"; torchrun says the rest
    reduce = fisher.distributed.all_reduce()
    F = fisher.fim(f, params, shard, fisher.PMatKFAC, layers=layers, reduce=reduce)     # of all shards, the same at all ranks
    E = F.eigendecomposition(group=torch.distributed.group.WORLD)   # each rank decomposes some of the layers

Each rank calls with its own examples, all ranks make the same calls in the same order.  A rank may have no example (`[]`, or
`x[:0]`): give it layers.  What waits for a rank that has died ends by the time-out of the process group.  An error that one
rank alone meets (NaN in its shard) is such an end for the others.

`reduce` may be any function `(sums, count) -> (sums, count)`: sums a tree of tensors linear in the data, None at a rank
without examples; count the number of examples.

Params, gradients and vectors may be DTensors (FSDP2): they are gathered leaf by leaf; matrices and statistics hold plain
tensors, and `F.mv(v)`, `F.solve(v)` and updates of `recipes.kfac` are placed as v and params are.

In reading order:
    groups       the process group, and what its ranks say beforehand
    marks        which matrices of a tree are symmetric, and their triangles
    buffers      trees as few flat buffers, and back
    reductions   all_reduce, all_gather
    stages       what a pass over data does with a reduce
    splitting    jobs split over the ranks by their cost
"""

from fisher.distributed.reductions import all_gather, all_reduce

__all__ = ["all_gather", "all_reduce"]


def __dir__() -> list[str]:
    return sorted(__all__)
