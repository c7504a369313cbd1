"""The start of a new transformer: as near to the answer as a linear map of its input can be.

Shapes: latents (B, f, c, h, w), p patch size, tokens of C channels, N patches.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from flashvideo.models.blocks import AdaptiveLayerNormOut, AdaptiveLayerNormZero, FlashVideoBlock
from flashvideo.models.transformer import FlashVideoTransformer3DModel

CONSTANT_ENERGY = 2.0
"""Energy of a token's constant in units of that of its components."""
POSITION_STD = 0.15
"""Of the first map from a token's position to the channels that hold the constant."""
NEIGHBOURS = ((0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1))
"""(time, row, column) in tokens: above, below, left, right."""


@torch.no_grad()
def init_for_training(
    model: FlashVideoTransformer3DModel, inputs: Tensor | None = None, targets: Tensor | None = None
) -> None:
    """Start a new model with a zero output, from which the best linear answer is one step away.

    Modulations are zero (adaLN-Zero, arXiv 2212.09748), so blocks are the identity. The principal components of a
    patch, scaled to unit variance, each enter as one channel of its token and leave with the size that they have in
    what the model learns to predict; a constant in the other channels keeps the last norm from dividing by what a
    patch holds. The output scale, which the time embedding sets, is then one gain for each component: the best linear
    answer at that time. Without this a narrow model spends most of a short training on passing noise through. Where
    tokens are too narrow for their patches, the output projection starts at zero instead.

    Half of the heads start by looking at one neighbouring token, whatever it holds; without this a small model is slow
    to make tokens agree on an object's outline. Embedders start at random: what depends on two of them together, as a
    motion does on text and time, could not begin to be learned from zero.

    Args:
        model: A new model.
        inputs: Examples of what the model is given (B, f, c, h, w), for their principal components; by default patches
            count as white.
        targets: What it learns to predict from these, same shape; by default as large as the inputs.

    Raises:
        ValueError: If there are targets without inputs.
    """
    if inputs is None and targets is not None:
        raise ValueError("targets need the inputs that they belong to, got targets alone")
    for module in model.modules():
        if isinstance(module, AdaptiveLayerNormZero | AdaptiveLayerNormOut):
            nn.init.zeros_(module.linear.weight)
            nn.init.zeros_(module.linear.bias)
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)
    embedders = (
        model.time_embedding,
        model.noise_step_embedding,
        model.num_frames_embedding,
        model.pooled_text_embedding,
    )
    modules = [m for e in embedders if e is not None for m in e.modules()]
    for linear in (m for m in modules if isinstance(m, nn.Linear)):
        nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
        nn.init.zeros_(linear.bias)
    _init_pass_through(model, inputs, inputs if targets is None else targets)
    _init_local_attention(model)


def _init_local_attention(model: FlashVideoTransformer3DModel) -> None:
    """Let half of the heads look at a neighbouring token, by their biases."""
    if not model.config.attention_bias:
        return
    count = model.config.num_attention_heads // 2
    for index, block in enumerate(model.transformer_blocks):
        assert isinstance(block, FlashVideoBlock)
        block.attn1.init_local([NEIGHBOURS[(index * count + i) % len(NEIGHBOURS)] for i in range(count)])


def _init_pass_through(
    model: FlashVideoTransformer3DModel, inputs: Tensor | None, targets: Tensor | None
) -> None:
    embed = model.patch_embed.proj
    width, size = embed.out_channels, embed.weight[0].numel()
    if size + 2 > width or embed.bias is None or model.proj_out.out_features != size:
        return
    mean, components, spread = torch.zeros(size), torch.eye(size), torch.ones(size)
    answer_size = spread
    if inputs is not None and targets is not None:
        patches, answers = (_patches(x, model.config.patch_size) for x in (inputs, targets))
        mean = patches.mean(0)
        variances, components = torch.linalg.eigh(patches.T.cov())  # a column for each component
        spread = variances.clamp(min=1e-8).sqrt()
        answer_size = (answers @ components).square().mean(0).sqrt()
    whiten = components.T / spread[:, None]  # a row for each component
    nn.init.zeros_(embed.weight)
    embed.weight[:size] = whiten.reshape(size, *embed.weight.shape[1:])
    embed.bias[:size] = -whiten @ mean
    # Alternating signs: layer norms remove the mean.
    signs = 1 - 2 * (torch.arange(width - size) % 2)
    embed.bias[size:] = signs * (CONSTANT_ENERGY * size / (width - size)) ** 0.5
    if model.position_embedding is not None:
        nn.init.normal_(model.position_embedding.linear.weight[size:], std=POSITION_STD)
    # What the norm divides by where components have unit variance.
    usual = ((1 + CONSTANT_ENERGY) * size / width) ** 0.5
    model.proj_out.weight[:, :size] = usual * components * answer_size
    model.norm_out.linear.bias.chunk(2)[1].fill_(-1.0)


def _patches(latents: Tensor, patch_size: int) -> Tensor:
    """The patches of (B, f, c, h, w) in the order in which `PatchEmbed` reads their elements, (N, c p p)."""
    return rearrange(latents.float(), "b f c (h p) (w q) -> (b f h w) (c p q)", p=patch_size, q=patch_size)
