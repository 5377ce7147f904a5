"""Training that grows: when, where, how much, and the loop that ties it all.

In reading order:
    descent     gradient methods as pure functions
    schedules   how many units when
    comparison  which pair: steps side by side
    scores      whether: scores and triggers
    search      two amplitudes by the loss
    proposals   the steps that pairs could take
    growing     step: one growth step, from data to larger params
    choice      which pairs grow, by how much
    feeds       what a fit trains on: tensors by indices, or batches that come again
    rules       what an optimizer is handed
    steps       what each phase of a fit came to
    fit         fit_and_grow
"""
