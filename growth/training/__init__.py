"""Training that grows: when, where, how much, and the loop that ties it all.

In reading order:
    descent     gradient methods as pure functions
    schedules   how many units when
    comparison  which pair: steps side by side
    scores      whether: scores and triggers
    search      two amplitudes by the loss
    growing     step: one growth step, from data to larger params
    steps       what each phase of a fit came to
    fit         fit_and_grow
"""
