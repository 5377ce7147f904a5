"""Trials: f and losses are run before matrices are made of them.  B examples.  Raw values are looked at only to raise.

In reading order:
    data       the batches that a trial is made on
    halves     half of the examples, replaced by others
    functions  one row per example, not random, examples apart
    once       what was tried is not tried again
    means      losses of each example, or their mean
    weighing   losses of one example that are means by weights
    modes      forward and reverse mode agree
"""
