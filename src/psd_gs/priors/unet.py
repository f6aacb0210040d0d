"""The network of the embedded prior: a small conditional U-Net, as diffusers' ``UNet2DConditionModel`` computes it.

``diffusers`` takes seconds to import, and brings transformers, peft and torch's compiler with it; this is the part of
that class which MVDream's layout at toy size needs, on the same files and to the bit the same. What else can be done
with the original (LoRA, sampling, saving) is done with the original.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from psd_gs.weights import weight_files

HANDLED: dict[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type": "text",
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": "projection",
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dropout": 0.0,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": 1,
    "upcast_attention": False,
    "use_linear_projection": True,
}
"""Options of the original that have this one value here; all others may vary."""


def handles(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is one that :class:`UNet` computes; other ones are for the original."""
    return all(config.get(name) == value for name, value in HANDLED.items())


class UNet(nn.Module):
    """Predicts what is in noisy pictures, all views of a set together.

    Args:
        config: of a ``UNet2DConditionModel``.
        views: that self-attention sees at once; the batch is set-major, view-fastest.

    """

    def __init__(self, config: Mapping[str, Any], views: int) -> None:
        super().__init__()
        self.config = c = SimpleNamespace(**config)
        widths, heads, layers = c.block_out_channels, c.attention_head_dim, c.layers_per_block
        time = c.time_embedding_dim or 4 * widths[0]
        plan = _Plan(time, c.norm_num_groups, c.norm_eps, c.cross_attention_dim, views)
        self.conv_in = nn.Conv2d(c.in_channels, widths[0], 3, padding=1)
        self.time_embedding = _Perceptron(widths[0], time)
        self.class_embedding = _Perceptron(c.projection_class_embeddings_input_dim, time)
        self.add_embedding = TextPool(c.cross_attention_dim, time, c.addition_embed_type_num_heads)
        self.down_blocks, skips = nn.ModuleList(), [widths[0]]
        for i, (kind, width, before) in enumerate(zip(c.down_block_types, widths, (widths[0], *widths), strict=False)):
            sizes = [(before if j == 0 else width, width) for j in range(layers)]
            last = i == len(widths) - 1
            self.down_blocks.append(_Level(plan, sizes, heads[i] if "CrossAttn" in kind else 0, "" if last else "down"))
            skips += [width] * (layers if last else layers + 1)
        self.mid_block = _Level(plan, [(widths[-1], widths[-1])] * 2, heads[-1], attentions=1)
        self.up_blocks, before = nn.ModuleList(), widths[-1]
        for i, kind in enumerate(c.up_block_types):
            width, sizes = widths[-1 - i], []
            for _ in range(layers + 1):
                sizes.append((before + skips.pop(), width))
                before = width
            last = i == len(widths) - 1
            number = heads[-1 - i] if "CrossAttn" in kind else 0
            self.up_blocks.append(_Level(plan, sizes, number, "" if last else "up"))
        self.conv_norm_out = nn.GroupNorm(c.norm_num_groups, widths[0], c.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], c.out_channels, 3, padding=1)

    @classmethod
    def from_pretrained(
        cls, folder: Path, config: Mapping[str, Any], views: int, dtype: torch.dtype = torch.float32
    ) -> UNet:
        """What ``UNet2DConditionModel.save_pretrained`` wrote.

        Args:
            folder: of the network.
            config: what its ``config.json`` holds, as :func:`handles` approves of it.
            views: see the class.
            dtype: of the weights.

        Raises:
            ModelError: no weights.
            RuntimeError: they do not fit the configuration.
        """
        from safetensors.torch import load_file

        with torch.random.fork_rng(devices=[]):  # not on the meta device: drawing there imports torch's compiler
            network = cls(config, views)
        state = {name: tensor.to(dtype) for file in weight_files(folder) for name, tensor in load_file(file).items()}
        network.load_state_dict(state, assign=True)
        return network

    @property
    def device(self) -> torch.device:
        return self.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.conv_in.weight.dtype

    def forward(
        self,
        sample: Float[Tensor, "B C H W"],
        timestep: Int[Tensor, "*B"],
        encoder_hidden_states: Float[Tensor, "B L D"],
        class_labels: Float[Tensor, "B 16"],
        return_dict: bool = True,
    ) -> Any:
        """What the network says of noisy pictures, as ``(output,)``, or with ``return_dict`` as ``.sample``."""
        times = timestep.expand(len(sample))
        emb = self.time_embedding(_frequencies(times, self.config.block_out_channels[0]).to(sample.dtype))
        emb = emb + self.class_embedding(class_labels) + self.add_embedding(encoder_hidden_states)
        x = self.conv_in(sample)
        skips = [x]
        for level in self.down_blocks:
            x = level(x, emb, encoder_hidden_states, out=skips)
        x = self.mid_block(x, emb, encoder_hidden_states)
        for level in self.up_blocks:
            x = level(x, emb, encoder_hidden_states, back=skips)
        x = self.conv_out(F.silu(self.conv_norm_out(x)))
        return SimpleNamespace(sample=x) if return_dict else (x,)


class _Plan(SimpleNamespace):
    """What all parts have in common."""

    def __init__(self, time: int, groups: int, eps: float, text: int, views: int) -> None:
        super().__init__(time=time, groups=groups, eps=eps, text=text, views=views)


class _Level(nn.Module):
    """Residual blocks, each followed by attention if there are ``heads``, then a step to the next resolution.

    The middle has one attention less than blocks.
    """

    def __init__(
        self, plan: _Plan, sizes: list[tuple[int, int]], heads: int, then: str = "", attentions: int | None = None
    ) -> None:
        super().__init__()
        width = sizes[-1][1]
        self.resnets = nn.ModuleList(_Resnet(plan, *size) for size in sizes)
        self.attentions = nn.ModuleList(
            _Transformer(plan, width, heads)
            for _ in range((len(sizes) if attentions is None else attentions) * (heads > 0))
        )
        self.downsamplers = self.upsamplers = None
        if then == "down":
            self.downsamplers = nn.ModuleList([nn.ModuleDict({"conv": nn.Conv2d(width, width, 3, 2, 1)})])
        if then == "up":
            self.upsamplers = nn.ModuleList([nn.ModuleDict({"conv": nn.Conv2d(width, width, 3, 1, 1)})])

    def forward(
        self, x: Tensor, emb: Tensor, text: Tensor, out: list[Tensor] | None = None, back: list[Tensor] | None = None
    ) -> Tensor:
        """``out`` gets what the way back needs, ``back`` is that."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(x if back is None else torch.cat([x, back.pop()], 1), emb)
            if i < len(self.attentions):
                x = self.attentions[i](x, text)
            if out is not None:
                out.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0]["conv"](x)  # type: ignore[index]
            if out is not None:
                out.append(x)
        if self.upsamplers is not None and back is not None:
            x = self.upsamplers[0]["conv"](F.interpolate(x, size=back[-1].shape[-2:]))  # type: ignore[index]
        return x


class _Resnet(nn.Module):
    def __init__(self, plan: _Plan, before: int, after: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(plan.groups, before, plan.eps)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.time_emb_proj = nn.Linear(plan.time, after)
        self.norm2 = nn.GroupNorm(plan.groups, after, plan.eps)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(before, after, 1) if before != after else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = y + self.time_emb_proj(F.silu(emb))[:, :, None, None]
        y = self.conv2(F.silu(self.norm2(y)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + y


class _Transformer(nn.Module):
    """Self-attention over all views of a set (MVDream, 2308.16512, section 3.1), then the words of each view."""

    def __init__(self, plan: _Plan, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(plan.groups, width, 1e-6)
        self.proj_in, self.proj_out = nn.Linear(width, width), nn.Linear(width, width)
        self.transformer_blocks = nn.ModuleList([_Block(plan, width, heads)])

    def forward(self, x: Float[Tensor, "B C H W"], text: Float[Tensor, "B L D"]) -> Float[Tensor, "B C H W"]:
        rows, _, height, width = x.shape
        y = self.proj_in(self.norm(x).permute(0, 2, 3, 1).reshape(rows, height * width, -1))
        y = self.proj_out(self.transformer_blocks[0](y, text))
        return y.reshape(rows, height, width, -1).permute(0, 3, 1, 2).contiguous() + x


class _Block(nn.Module):
    def __init__(self, plan: _Plan, width: int, heads: int) -> None:
        super().__init__()
        self.views = plan.views
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attn1, self.attn2 = _Attention(width, width, heads), _Attention(width, plan.text, heads)
        self.ff = _Gated(width)

    def forward(self, x: Float[Tensor, "B L C"], text: Float[Tensor, "B T D"]) -> Float[Tensor, "B L C"]:
        together = self.norm1(x).reshape(len(x) // self.views, -1, x.shape[2])
        x = self.attn1(together, together).reshape(x.shape) + x
        x = self.attn2(self.norm2(x), text) + x
        return self.ff(self.norm3(x)) + x


class _Attention(nn.Module):
    def __init__(self, width: int, other: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k = nn.Linear(width, width, bias=False), nn.Linear(other, width, bias=False)
        self.to_v = nn.Linear(other, width, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Float[Tensor, "B L C"], other: Float[Tensor, "B M D"]) -> Float[Tensor, "B L C"]:
        query, key, value = (
            y.view(len(y), -1, self.heads, y.shape[2] // self.heads).transpose(1, 2)
            for y in (self.to_q(x), self.to_k(other), self.to_v(other))
        )
        y = F.scaled_dot_product_attention(query, key, value)
        return self.to_out[0](y.transpose(1, 2).reshape(x.shape))


class _Gated(nn.Module):
    """A perceptron with gated units (2002.05202)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        into = nn.ModuleDict({"proj": nn.Linear(width, 8 * width)})
        self.net = nn.ModuleList([into, nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.net[0]["proj"](x).chunk(2, dim=-1)  # type: ignore[index]
        return self.net[2](x * F.gelu(gate))


class TextPool(nn.Module):
    """Words to one vector beside the time: the mean asks, all words answer."""

    def __init__(self, width: int, time: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(time)
        self.pool = _Projections(width)
        self.proj = nn.Linear(width, time)

    def forward(self, text: Float[Tensor, "B L D"]) -> Float[Tensor, "B E"]:
        x = self.norm1(text)
        rows, _, width = x.shape
        asking = x.mean(1, keepdim=True) + self.pool.positional_embedding.to(x.dtype)
        x = torch.cat([asking, x], 1)

        def split(y: Tensor) -> Tensor:
            y = y.view(rows, -1, self.heads, width // self.heads).transpose(1, 2)
            return y.reshape(rows * self.heads, -1, width // self.heads).transpose(1, 2)

        query, key, value = split(self.pool.q_proj(asking)), split(self.pool.k_proj(x)), split(self.pool.v_proj(x))
        scale = 1 / math.sqrt(math.sqrt(width // self.heads))
        weight = torch.einsum("bct,bcs->bts", query * scale, key * scale)
        weight = torch.softmax(weight.float(), -1).type(weight.dtype)
        pooled = torch.einsum("bts,bcs->bct", weight, value).reshape(rows, -1, 1).transpose(1, 2)[:, 0]
        return self.norm2(self.proj(pooled))


class _Projections(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(1, width) / width**0.5)
        self.k_proj, self.q_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))


class _Perceptron(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(before, after), nn.Linear(after, after)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


def _frequencies(times: Int[Tensor, " B"], width: int) -> Float[Tensor, "B width"]:
    """Cosines and sines of the times (DDPM, 2006.11239)."""
    half = width // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=times.device) / half
    angles = times[:, None].float() * torch.exp(exponent)[None]
    return torch.cat([torch.cos(angles), torch.sin(angles)], -1)
