"""Published models, small and with random weights: their layers are found and their rows are autograd's.  Packages that are
not there are skipped.
"""

import pytest
import torch
from torch import nn
from torch.func import functional_call

import fisher
from linmaps import trees
from tests.laws import close

D = torch.float64
CHANNELS, SIZE = 3, 8


class Result(nn.Module):
    """A model of which one tensor is the output."""

    def __init__(self, model, name):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, x):
        return getattr(self.model(x), self.name)


def language(kind, result="logits", /, **options):
    """By the name of its class; 5 tokens, width 8."""

    def make(package):
        config = getattr(package, kind).config_class(**options)
        return Result(getattr(package, kind)(config), result), torch.tensor([[1, 2, 3], [4, 0, 2]])

    return make


def image(make):
    return lambda package: (make(package), randn(2, CHANNELS, SIZE, SIZE))


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=D)


WIDTH = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 6, "vocab_size": 5}
ROPE = WIDTH | {"num_key_value_heads": 1, "max_position_embeddings": 8, "pad_token_id": None}
T5 = {"d_model": 8, "d_kv": 4, "d_ff": 6, "num_layers": 1, "num_heads": 2, "vocab_size": 5}
LANGUAGE = {
    "gpt2": language("GPT2LMHeadModel", n_embd=8, n_layer=1, n_head=2, n_positions=8, vocab_size=5),
    "neox": language("GPTNeoXForCausalLM", **WIDTH, max_position_embeddings=8),
    "opt": language("OPTForCausalLM", hidden_size=8, num_hidden_layers=1, num_attention_heads=2, ffn_dim=6, vocab_size=5,
                    max_position_embeddings=8, word_embed_proj_dim=8),
    "llama": language("LlamaForCausalLM", **ROPE),
    "llama by eager attention": language("LlamaForCausalLM", **ROPE, attn_implementation="eager"),
    "qwen2": language("Qwen2ForCausalLM", **ROPE),
    "qwen3": language("Qwen3ForCausalLM", **ROPE, head_dim=4),
    "gemma": language("GemmaForCausalLM", **ROPE, head_dim=4),
    "phi": language("PhiForCausalLM", **ROPE),
    "mixtral": language("MixtralForCausalLM", **ROPE, num_local_experts=3, num_experts_per_tok=2,
                        experts_implementation="eager"),
    "mamba": language("MambaForCausalLM", hidden_size=4, num_hidden_layers=1, vocab_size=5, state_size=2, use_mambapy=False),
    "bert": language("BertForSequenceClassification", **WIDTH, max_position_embeddings=8),
    "distilbert": language("DistilBertForSequenceClassification", dim=8, n_layers=1, n_heads=2, hidden_dim=6, vocab_size=5,
                           max_position_embeddings=8),
    "roberta": language("RobertaForTokenClassification", **WIDTH, max_position_embeddings=8),
    "albert": language("AlbertForSequenceClassification", **WIDTH, embedding_size=4, max_position_embeddings=8),
    "t5": language("T5EncoderModel", "last_hidden_state", **T5),
    "deberta": language("DebertaV2ForSequenceClassification", **WIDTH, relative_attention=True, max_position_embeddings=8,
                        pos_att_type=["c2p", "p2c"], position_buckets=4),
}  # fmt: skip
SMALL = {"num_classes": 2, "img_size": SIZE, "in_chans": CHANNELS}
TIMM = {
    "vit": image(lambda t: t.models.VisionTransformer(
        **SMALL, patch_size=4, embed_dim=8, depth=1, num_heads=2, init_values=0.1, reg_tokens=1)),
    "swin": image(lambda t: t.models.SwinTransformer(
        **SMALL, patch_size=2, embed_dim=4, depths=(2,), num_heads=(2,), window_size=2)),
    "swin2": image(lambda t: t.models.SwinTransformerV2(
        **SMALL, patch_size=2, embed_dim=4, depths=(1,), num_heads=(2,), window_size=2)),
    "mixer": image(lambda t: t.models.MlpMixer(**SMALL, patch_size=4, num_blocks=1, embed_dim=8)),
    "convnext": image(lambda t: t.models.ConvNeXt(
        num_classes=2, in_chans=CHANNELS, patch_size=1, depths=(1, 1, 1, 1), dims=(4, 4, 4, 4), ls_init_value=0.1)),
    "resnet": image(lambda t: nn.Sequential(
        nn.Conv2d(CHANNELS, 4, 3), t.models.resnet.BasicBlock(4, 4, attn_layer=t.layers.SEModule), nn.Flatten(),
        nn.Linear(144, 2))),
    "bottleneck": image(lambda t: nn.Sequential(
        nn.Conv2d(CHANNELS, 8, 3, 2), t.models.resnet.Bottleneck(8, 2), nn.Flatten(), nn.Linear(72, 2))),
}  # fmt: skip
TORCHVISION = {
    "vit": image(lambda t: t.models.VisionTransformer(SIZE, 4, 1, 2, 8, 6, num_classes=2)),
    "swin": image(lambda t: t.models.SwinTransformer([2, 2], 4, [2], [2], [2, 2], num_classes=2)),
    "swin2": image(lambda t: t.models.SwinTransformer([2, 2], 4, [2], [2], [2, 2], num_classes=2,
                   block=t.models.swin_transformer.SwinTransformerBlockV2,
                   downsample_layer=t.models.swin_transformer.PatchMergingV2)),
    "convnext": image(lambda t: t.models.ConvNeXt([t.models.convnext.CNBlockConfig(4, None, 2)], 0.0, 0.5, num_classes=2)),
    "basic": image(lambda t: nn.Sequential(
        nn.Conv2d(CHANNELS, 4, 3), t.models.resnet.BasicBlock(4, 4), nn.Flatten(), nn.Linear(144, 2))),
    "inverted": image(lambda t: nn.Sequential(
        t.models.mobilenetv2.InvertedResidual(CHANNELS, CHANNELS, 1, 2), nn.Flatten(), nn.Linear(192, 2))),
    "dense": image(lambda t: t.models.DenseNet(2, (1, 1), 4, 2, num_classes=2)),
    "shuffle": image(lambda t: nn.Sequential(
        nn.Conv2d(CHANNELS, 4, 3), t.models.shufflenetv2.InvertedResidual(4, 4, 1), nn.Flatten(), nn.Linear(144, 2))),
}  # fmt: skip


def squares(model, params, x):
    """Mean over examples of the sum over outputs of the squared gradients, by plain autograd, one example at a time."""
    sums = {n: torch.zeros_like(t) for n, t in params.items()}
    leaves = {n: t.clone().requires_grad_() for n, t in params.items()}
    for b in range(len(x)):
        for entry in functional_call(model, leaves, (x[b : b + 1],)).flatten():
            found = torch.autograd.grad(entry, [*leaves.values()], retain_graph=True, materialize_grads=True)
            for (name, own), t in zip(sums.items(), found):
                sums[name] = own + t**2 / len(x)
    return sums


def check(model, x):
    model = model.double().eval()
    params = {n: t.detach() for n, t in model.named_parameters()}
    params = {n: t + 0.1 * randn(*t.shape, seed=k) for k, (n, t) in enumerate(params.items())}  # none at its init
    layers = fisher.LayerCollection.from_model(model, params, x)
    f = lambda p, x: functional_call(model, p, (x,))
    F, K = (
        fisher.fim(f, params, x, r, "gaussian", layers=layers, largest_block=64)
        for r in (fisher.PMatDiag, fisher.PMatKFAC)
    )
    close(F.get_diag(), squares(model, params, x), 1e-5, "diagonal")  # some norms are in single precision
    assert all(bool(t.isfinite().all()) for t in trees.leaves(K.solve(params, 0.1)))


@pytest.mark.parametrize("name", LANGUAGE)
def test_transformers(name):
    check(*LANGUAGE[name](pytest.importorskip("transformers")))


@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    check(*TIMM[name](pytest.importorskip("timm")))


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    check(*TORCHVISION[name](pytest.importorskip("torchvision")))
