"""Training that grows: when, where, how much, and the loop that ties it all.

In reading order:
    descent    gradient methods as pure functions
    schedules  how many units when
    scores     which pair, and whether
    search     two amplitudes by the loss
    fit        fit_and_grow
"""
