"""The prior's two networks, and how they start from published weights of another layout."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from psd_gs.priors.multiview_pipeline import MultiViewPipeline, cosine_scheduler, set_views

VIEWS = 4
CHANNELS = (48, 64, 128, 192)
TEXT_WIDTH = 192
TIME_WIDTH = 128
LITTLE = 0.1
"""What new channels count at first, of what the others do."""
OUTER = ("conv_in", "conv_norm_out", "conv_out")
"""What lies outside all levels of a U-Net."""
LAYOUT = 16
"""Squares per side of a picture: a time spoils as much of their means at every size."""
SHARD = "14MB"
"""Saved weights are cut into files of at most this, which every host of repositories takes."""


def make_unet(size: int, patch: int, channels: Sequence[int] = CHANNELS) -> UNet2DConditionModel:
    """MVDream's layout at toy size: plain levels, and two deepest ones with self- and cross-attention.

    Args:
        size: of the pictures, pixels per side.
        patch: side of the squares of pixels that become one cell.
        channels: of every level, whole multiples of 32 where there is attention.
    """
    plain, attends = "DownBlock2D", "CrossAttnDownBlock2D"
    unet = UNet2DConditionModel(
        sample_size=size // patch,
        in_channels=3 * patch**2,
        out_channels=3 * patch**2,
        layers_per_block=1,
        block_out_channels=tuple(channels),
        down_block_types=(*(plain,) * (len(channels) - 2), attends, attends),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", *("UpBlock2D",) * (len(channels) - 2)),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=tuple(max(1, c // 32) for c in channels),  # numbers of heads, in spite of the name
        norm_num_groups=16,
        use_linear_projection=True,
        time_embedding_dim=TIME_WIDTH,
        addition_embed_type="text",  # pooled text beside the time: learns words long before cross-attention does
        addition_embed_type_num_heads=6,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=16,
    )
    set_views(unet, VIEWS)
    return unet


def make_text_encoder(tokenizer: PreTrainedTokenizerFast, vectors: Float[Tensor, "W D"]) -> CLIPTextModel:
    """Three layers over given word vectors, which stay as they are: like words keep like vectors."""
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=3 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=6,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    nn.init.normal_(encoder.embeddings.position_embedding.weight, std=0.15)
    encoder.embeddings.token_embedding.weight = nn.Parameter(vectors.clone(), requires_grad=False)
    return encoder


class Model(nn.Module):
    """Both trained networks, so that one optimizer and one EMA serve them; and their schedule."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        text_encoder: CLIPTextModel,
        unet: UNet2DConditionModel,
        patch: int,
        shift: float | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer, self.text_encoder, self.unet, self.patch = tokenizer, text_encoder, unet, patch
        self.scheduler = cosine_scheduler(patch, shift)

    def pipeline(self) -> MultiViewPipeline:
        return MultiViewPipeline(
            self.tokenizer, self.text_encoder, self.unet, self.scheduler, views=VIEWS, patch=self.patch
        )  # fmt: skip

    def trained(self) -> list[nn.Parameter]:
        """Parameters that training changes; the others are the same in every checkpoint."""
        return [p for p in self.parameters() if p.requires_grad]


# --- from the pixels of small pictures to patches of large ones -------------------------------------------------------


def inflated(unet: UNet2DConditionModel, old: int, patch: int) -> UNet2DConditionModel:
    """The same network on patches whose side is a multiple of that of its own: it paints what it did, enlarged.

    ``conv_in`` reads the means of the squares that were pixels and ``conv_out`` writes its answers into all pixels of
    them.
    """
    config = {**unet.config, "in_channels": 3 * patch**2, "out_channels": 3 * patch**2}
    large = UNet2DConditionModel.from_config(config)
    state, times = unet.state_dict(), patch // old

    def spread(value: Tensor, axis: int) -> Tensor:
        """Channels are colours by rows by columns of a patch."""
        cells = value.unflatten(axis, (3, old, old)).repeat_interleave(times, axis + 1)
        return cells.repeat_interleave(times, axis + 2).flatten(axis, axis + 2)

    state["conv_in.weight"] = spread(state["conv_in.weight"], 1) / times**2
    for name in ("conv_out.weight", "conv_out.bias"):
        state[name] = spread(state[name], 0)
    large.load_state_dict(state)
    set_views(large, VIEWS)
    return large


def widened(small: UNet2DConditionModel, large: UNet2DConditionModel) -> UNet2DConditionModel:
    """``large`` with the weights of ``small``, whose first level is narrower.

    Channels beyond those of ``small`` begin with random weights as strong as the others, and hardly count in what reads
    them. (Copies, as in Net2Wider, stay copies: after 500 steps they were 99 % alike.) They share the groups of the
    norms with the others, so the answer is close, not the same.
    """
    old, new = small.config.block_out_channels[0], large.config.block_out_channels[0]
    if old == new:
        large.load_state_dict(small.state_dict())
        return large
    groups = small.config.norm_num_groups
    place = torch.arange(new // groups)
    source = (torch.arange(old).view(groups, -1)[:, place % (old // groups)]).flatten()
    fresh = (place >= old // groups).repeat(groups)
    generator = torch.Generator().manual_seed(0)
    state = small.state_dict()
    for name, target in large.state_dict().items():
        value = state[name]
        if name == "time_embedding.linear_1.weight":
            state[name] = _other_frequencies(value, small, large)
            continue
        spread = value.std()
        for axis in range(value.ndim):
            if (extra := target.shape[axis] - value.shape[axis]) > 0:
                copies = extra // (new - old)  # a skip connection of this level is appended to what did not grow
                start = value.shape[axis] - copies * old
                index = torch.cat([torch.arange(start), *(start + k * old + source for k in range(copies))])
                value = value.index_select(axis, index)
                if value.ndim > 1:
                    added = torch.cat([torch.zeros(start, dtype=torch.bool), *(fresh,) * copies])
                    drawn = spread * torch.randn(value.shape, generator=generator) * (LITTLE if axis else 1)
                    value = torch.where(added.view(-1, *(1,) * (value.ndim - 1 - axis)), drawn, value)
        state[name] = value
    large.load_state_dict(state)
    return large


def _other_frequencies(
    weight: Float[Tensor, "D c"], small: UNet2DConditionModel, large: UNet2DConditionModel
) -> Float[Tensor, "D C"]:
    """The layer that reads the sinusoids of the time, for those of another width: by ridge regression over all times.

    The slow sinusoids are all but one and the same; without the ridge their weights leave the range of half precision.
    """
    times = torch.arange(1000)
    told = large.time_proj(times).double()
    wanted = (small.time_proj(times) @ weight.T).double()
    return torch.linalg.solve(told.T @ told + torch.eye(told.shape[1]), told.T @ wanted).T.float()


def grown(small: UNet2DConditionModel, large: UNet2DConditionModel) -> UNet2DConditionModel:
    """``large`` with the weights of ``small``, which has one level less: that of the largest grid is new.

    What enters and leaves the inner levels is new too, so it says nothing yet: train that alone at first
    (:func:`is_outer`).
    """
    inner = {
        re.sub(r"^down_blocks\.(\d+)", lambda found: f"down_blocks.{int(found[1]) + 1}", name): value
        for name, value in small.state_dict().items()
        if not name.startswith(OUTER)
    }
    missing, unexpected = large.load_state_dict(inner, strict=False)
    assert not unexpected
    assert all(is_outer(name, large) for name in missing), missing
    return large


def is_outer(name: str, unet: UNet2DConditionModel) -> bool:
    """Whether a weight belongs to what :func:`grown` adds."""
    last = len(unet.up_blocks) - 1
    return name.startswith((*OUTER, "down_blocks.0.", f"up_blocks.{last}.", f"up_blocks.{last - 1}.upsamplers"))


def warm_start(model: Model, old: MultiViewPipeline) -> None:
    """The U-Net from one with smaller patches, or none: it paints what the old one did, enlarged (:func:`from_cells`
    says why). Or from one with a level less."""
    if len(model.unet.down_blocks) > len(old.unet.down_blocks):
        grown(old.unet, model.unet)
    else:
        widened(inflated(old.unet, old.config.patch, model.patch), model.unet)
