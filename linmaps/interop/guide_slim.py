"""Coming from slim: its names, and ours beside them."""

NOTES = """
Its matrices are [in, out] too.  Its modules hold what here is a spec and its params: `effective_W()`, `reg_error()`, `eig()`
and `forward(x)` are `effective_W(params)`, `reg_error(params)`, `eig(params)` and `apply(params, x)`.  Biases are never part
of W here; sizes come first, all options are keywords.
"""

ROWS = """
Linear(insize, outsize, bias)                   | Linear(in_features=, out_features=, bias=)
IdentityLinear                                  | Identity()
IdentityInitLinear                              | IdentityInit()
NonNegativeLinear                               | NonNegative(method="relu"); by default softplus, never dead
SplitLinear                                     | Split(method="relu")
StableSplitLinear(sigma_min, sigma_max)         | StableSplit(sigma_min=, sigma_max=), stable indeed
LassoLinear(gamma)                              | Lasso(gamma=), with project after each step
LassoLinearRELU(gamma)                          | LassoReLU(gamma=)
L0Linear(weight_decay, droprate_init)           | L0(weight_decay=, droprate_init=), noise is an argument
L0Linear(temperature, lamda)                    | L0(temperature=, lamda=)
RightStochasticLinear                           | RightStochastic()
LeftStochasticLinear                            | LeftStochastic()
PerronFrobeniusLinear(sigma_min, sigma_max)     | PerronFrobenius(sigma_min=, sigma_max=)
SymmetricLinear                                 | Symmetric()
SkewSymmetricLinear                             | SkewSymmetric()
DampedSkewSymmetricLinear(sigma_min, sigma_max) | DampedSkewSymmetric(sigma_min=, sigma_max=, time=), which damps
PSDLinear                                       | PSD(rank=, eps=)
OrthogonalLinear                                | Orthogonal(method=, n_reflectors=, det=)
SpectralLinear(n_U_reflectors, n_V_reflectors)  | Spectral(n_U_reflectors=, n_V_reflectors=)
SpectralLinear(sigma_min, sigma_max)            | Spectral(sigma_min=, sigma_max=)
SymmetricSpectralLinear(n_reflectors)           | SymmetricSpectral(n_reflectors=, sigma_min=, sigma_max=)
SVDLinear(sigma_min, sigma_max)                 | SVD(sigma_min=, sigma_max=); Spectral() without a penalty
SVDLinearLearnBounds(sigma_min, sigma_max)      | SVDLearnBounds(sigma_min=, sigma_max=) and its bounds
SymmetricSVDLinear(sigma_min, sigma_max)        | SymmetricSVD(sigma_min=, sigma_max=), symmetric indeed
SchurDecompositionLinear(l2)                    | Schur(gamma_max=, nonnormal=); bounds in place of the penalty
SymplecticLinear                                | BlockSkew() is that matrix; Symplectic(n_factors=) is symplectic
GershgorinLinear(sigma_min, sigma_max, real)    | Gershgorin(sigma_min=, sigma_max=, real=)
BoundedNormLinear(sigma_min, sigma_max, p)      | BoundedNorm(sigma_min=, sigma_max=, p=, soft=)
TrivialNullSpaceLinear(rank, epsilon)           | TrivialNullSpace(rank=, epsilon=)
PowerBoundLinear(max_p, pwr_iters)              | PowerBound(max_p=, method=); no iteration
ButterflyLinear(complex, tied_weight)           | Butterfly(complex=, tied_weight=)
ButterflyLinear(increasing_stride, ortho_init)  | Butterfly(increasing_stride=, blocks=), "rotation" stays orthogonal
Permutation                                     | Permutation() and its argmax
Hprod(x, u, k)                                  | hprod(x, U), all reflections at once
IdentityGradReLU                                | identity_grad_relu(x)
RNNCell(hidden_map, input_map, nonlin)          | RNNCell(hidden_map=, input_map=, activation=)
RNN                                             | rnn(cell, params, xs)
maps                                            | maps
"""
