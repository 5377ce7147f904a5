"""The best change of a layer and the best new units, in closed form, of moments; new units by rules, of params.

Only `signs` looks at data again.

In reading order:
    delta           the best change of the second layer
    units           Neurons: new units as data
    select          fewer, scaled, merged units
    gates           units of several gates, the best of all
    neurons         the best k new units
    signs           the better sign of units at a kink
    noise           what the noise of the moments explains
    draws           random numbers as arguments
    normalization   sizes of new units
    sides           signs, sizes and random sides of units whose sides are chosen apart
    presets         TINY, GradMax, SENN, zeros, random
    initialization  units by the rules of an initialisation
"""
