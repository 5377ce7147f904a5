"""Optimizers as pairs of pure functions, on Fisher matrices that they keep in their state.

In reading order:
    protocol    Optimizer: init and update, and what they ask for
    schedules   settings that are numbers or functions of the step
    memory      KFACState, what an optimizer keeps between steps
    curvature   moving averages of factors, and their eigenbases
    model       the quadratic model of a loss in the span of a few directions
    adaptation  Levenberg-Marquardt damping by the ratio of what happened to what the model foresaw
    descent     kfac
"""
