"""Optimizers as pure functions, on Fisher matrices that they keep in their state.

In reading order:
    protocol    Optimizer: init, update, prepare, and what they ask for
    schedules   settings that are numbers or functions of the step, and what is due at one
    memory      KFACState, what an optimizer keeps between steps
    curvature   moving averages of factors, their eigenbases, damped solves
    batchnorm   statistics of the batch: constants of the curvature, running averages of params; in_train_mode
    upkeep      factors and bases, made anew where it is their turn
    model       the quadratic model of a loss in the span of a few directions
    falls       what the mean loss rises by, as measured
    settings    what the arguments of kfac say
    lengths     how far a step goes
    adaptation  Levenberg-Marquardt damping by the ratio of what happened to what the model foresaw
    descent     kfac
    rotated     soap: Adam in the eigenbases
    graphs      compiled_step
    partition   several optimizers, each for some of the leaves
"""
