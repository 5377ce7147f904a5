"""Models: the one list of functions, one per way a leaf can be used.  Each new rule adds a member here, at the end: the place
of a member in the list is the seed of its numbers.
"""

from linmaps import trees
from tests.zoo import (
    attentions,
    blocks,
    convolutions,
    examples,
    fields,
    images,
    products,
    replaced,
    routing,
    scales,
    steps,
    tables,
    transformers,
    weights,
)
from tests.zoo.member import Member, _randn

__all__ = ["MODELS", "Member", "_randn", "perturbed"]

BUILDERS = [
    products.mlp, products.matmul_joined_bias, products.addmm, products.bias_apart, products.in_place, products.tied,
    products.both_ways, examples.sequence, examples.pooled, examples.flattened, examples.steps_first, scales.bare,
    weights.derived, products.module, attentions.attention, scales.affine, attentions.cross_attention,
    convolutions.conv1d, convolutions.conv2d, convolutions.conv3d, convolutions.transposed, scales.norms,
    tables.embedding, tables.tied_embedding, products.einsum, weights.weight_norm, attentions.class_token,
    examples.first_step, examples.own_step, examples.silent_head, scales.prelu, products.mixed_bias,
    attentions.unequal_attention, products.flat_vector, products.stacked_layers, products.heads, steps.lstm, steps.gru,
    steps.rnn, transformers.gpt, transformers.vit, images.resnet, images.mobilenet, images.convnext, images.unet,
    blocks.llama, blocks.gpt2, blocks.swin, steps.mamba, routing.soft_experts, examples.mapped, routing.graph,
    routing.graph_attention, fields.deeponet, fields.deeponet_points, fields.hypernetwork, fields.hypernetwork_fixed,
    fields.conditioned, weights.lora, weights.spectral_norm, weights.bounded, weights.kernel, weights.orthogonal_map,
    weights.low_rank_map, weights.spectral_map, weights.train_map, fields.pinn_argument,
    products.parted_bias, products.zeroed_bias, weights.fused_norm, fields.pinn_jvp, fields.pinn_closure,
    routing.hashed_experts, routing.kept_tokens, routing.chosen_experts,
    replaced.prototypes, replaced.rolled, replaced.windows, replaced.transformer_of_space,
]  # fmt: skip
MODELS = {build.__name__: build(_randn(k)) for k, build in enumerate(BUILDERS)}


def perturbed(params, seed, size=0.1):
    r = _randn(seed)
    return trees.map(lambda t: t + size * r(*t.shape), params)
