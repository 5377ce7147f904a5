"""The collector: which leaf of params is used how in f, what enters each use, and the gradient at its output.

B batch, S shared (positions, repeated uses), I inputs, O outputs, C columns (cotangents at f's output): a [B, S, I],
g [C, B, S, O].

In reading order:
    rules/       which torch call uses a leaf how
    calls/       what a leaf goes through before a rule meets it
    watching/    every torch call that f makes, under the rules
    blocks/      Use and Layer: one call, and the calls that share leaves; which leaves share a block
    trace        one run watched: the uses met, in order
    layers       Layers: which leaf is used how, as data
    exact_rows   rows of single examples, of leaves without a rule
    backwards    the gradients at the taps, where autograd alone gives them
    replay       a run held against the uses that were seen
    taps         zero tensors added at the outputs: a and g by one vjp
    weights      the weights that f makes, as functions of their leaves
    products     gradients and rows as products g a'
    witness      where the examples are, and that uses and rows explain autograd's gradient
    torch_layers sizes that layers keep beside their tensors, and those of other tensors for a call
    modules      a torch.nn.Module as a pure function
    collection   LayerCollection: layers found and checked
    restriction  a function on the leaves of some layers alone
    io           a and g as a public function
"""
