"""ImageDream's published weights (Wang and Shi, arXiv 2312.02201): MVDream's network, shown a picture.

Of the variant with a pixel controller. The picture enters twice: every cross-attention layer also reads 16 tokens that
a resampler makes of CLIP's features of its patches, and it is a fifth view without noise and without a camera, to which
the four others attend. What guidance leads away from sees a zero in both places. The resampler and the layers are
diffusers' own (IP-Adapter Plus, arXiv 2308.06721); the names are the original ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPVisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from psd_gs.cameras import Cameras
from psd_gs.priors.base import TextEmbedding
from psd_gs.priors.loading import check_component, explained, without_bars
from psd_gs.priors.memory import one_at_a_time
from psd_gs.priors.multiview import MultiViewPrior
from psd_gs.priors.multiview_pipeline import MultiViewPipeline, set_views
from psd_gs.priors.mvdream import SD21_4VIEW, original_names, read_components, unet_config, variant
from psd_gs.resize import resized
from psd_gs.weights import compare_shapes

FRAMES = 5
"""Four views and the picture."""

SD21_4VIEW_IPMV = SD21_4VIEW | {"ip_dim": 16}
"""``sd-v2.1-base-4view-ipmv``; source: bytedance/ImageDream, ``imagedream/configs/sd_v2_base_ipmv.yaml``."""

RESAMPLER = {"depth": 4, "dim_head": 64, "heads": 12, "ffn_ratio": 4.0}
"""Layers, channels of a head, heads, and how many times as wide inner layers are; source: the same repository."""

_RESAMPLER_LAYER = {
    "ln0": "0.norm1",
    "ln1": "0.norm2",
    "attn.to_q": "0.to_q",
    "attn.to_out.0": "0.to_out",
    "ff.0": "1.0",
    "ff.1.net.0.proj": "1.1",
    "ff.1.net.2": "1.3",
}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)\.(weight|bias)")
_FUSED = ".0.to_kv.weight"
"""Keys and values in one tensor, which diffusers has in two."""


class PictureAttnProcessor(IPAdapterAttnProcessor2_0):
    """Cross-attention to the text, and by keys and values of their own to the last tokens, which are the picture's."""

    def __call__(self, attn, hidden_states, encoder_hidden_states, *args, **kwargs):
        text, picture = encoder_hidden_states.tensor_split([-self.num_tokens[0]], dim=1)
        return super().__call__(attn, hidden_states, (text, [picture]), *args, **kwargs)


class ImageDreamUNet(nn.Module):
    """The network and the resampler of what the picture adds, as one checkpoint holds them.

    Args:
        config: original fields, such as :data:`SD21_4VIEW_IPMV`.
        features: channels of CLIP's features.
    """

    def __init__(self, config: Mapping[str, Any], features: int = 1280) -> None:
        super().__init__()
        self.unet = UNet2DConditionModel(**unet_config(config))
        width = config["context_dim"]
        processors = dict(self.unet.attn_processors)
        for name in processors:
            if name.endswith("attn2.processor"):
                layer = self.unet.get_submodule(name.removesuffix(".processor"))
                processors[name] = PictureAttnProcessor(
                    layer.inner_dim, width, num_tokens=(config["ip_dim"],), scale=config.get("ip_weight", 1.0)
                )
        self.unet.set_attn_processor(processors)
        self.resampler = IPAdapterPlusImageProjection(
            embed_dims=features, output_dims=width, hidden_dims=width, num_queries=config["ip_dim"], **RESAMPLER
        )

    def original_names(self) -> dict[str, str]:
        """Our name of every tensor to its original name; keys and values of the resampler share one, :data:`_FUSED`."""
        own = [name for name in self.unet.state_dict() if ".processor." not in name]
        names = {f"unet.{name}": theirs for name, theirs in original_names(self.unet, own).items()}
        for name in self.unet.state_dict():
            if ".processor." in name:  # beside the layer's own to_k, for which there is a name already
                owner, leaf = name.split(".processor.")
                layer = names[f"unet.{owner}.to_k.weight"].removesuffix("to_k.weight")
                names[f"unet.{name}"] = f"{layer}{leaf.replace('.0.', '.')}"
        for name in self.resampler.state_dict():
            match = _LAYER.fullmatch(name)
            theirs = name
            if match:
                number, module, leaf = match.groups()
                fused = module in ("attn.to_k", "attn.to_v")
                theirs = f"layers.{number}{_FUSED}" if fused else f"layers.{number}.{_RESAMPLER_LAYER[module]}.{leaf}"
            names[f"resampler.{name}"] = f"image_embed.{theirs}"
        return names


def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor], what: str, features: int = 1280) -> ImageDreamUNet:
    """The networks of an original configuration that hold exactly the given tensors.

    Args:
        config: original fields, such as :data:`SD21_4VIEW_IPMV`.
        tensors: under original names.
        what: for errors.
        features: channels of CLIP's features.

    Raises:
        ModelError: tensors are missing, unknown or of another shape.
    """
    with torch.device("meta"):
        model = ImageDreamUNet(config, features)
    names, state = model.original_names(), model.state_dict()
    expected: dict[str, tuple[int, ...]] = {}
    for ours, theirs in names.items():
        rows, *others = state[ours].shape
        expected[theirs] = (2 * rows if theirs.endswith(_FUSED) else rows, *others)
    compare_shapes(expected, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, what)
    loaded = {}
    for ours, theirs in names.items():
        tensor = tensors[theirs]
        if theirs.endswith(_FUSED):
            tensor = tensor.chunk(2)[ours.endswith("to_v.weight")].contiguous()
        loaded[ours] = tensor
    model.load_state_dict(loaded, assign=True)
    return model


class ImageDreamPrior(MultiViewPrior):
    """A folder of the diffusers-format repository, whose U-Net keeps its original names and remote code.

    The code is not run; the weights are read and renamed.

    Args:
        pipeline: of MVDream's layout, over the network with the picture's layers.
        name: for logs and messages.
        resampler: from CLIP's features to tokens.
        image_encoder: CLIP's; its last layer but one is read.
        options: of :class:`psd_gs.priors.latent.LatentPrior`.
    """

    family = "imagedream"  # type: ignore[assignment]
    pictured = True

    def __init__(
        self,
        pipeline: MultiViewPipeline,
        name: str = "imagedream",
        *,
        resampler: IPAdapterPlusImageProjection,
        image_encoder: CLIPVisionModel,
        **options: Any,
    ) -> None:
        set_views(pipeline.unet, FRAMES)
        self.resampler, self.image_encoder = resampler, image_encoder
        self.tokens = resampler.latents.shape[1]
        for module in (resampler, image_encoder):
            module.requires_grad_(False).eval()
        super().__init__(pipeline, name, **options)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, name: str, dtype: torch.dtype = torch.float32, **options: Any
    ) -> ImageDreamPrior:
        folder = Path(folder)
        with explained(folder), without_bars():
            check_component(folder / "image_encoder", "transformers", "CLIPVisionModel")
            encoder = CLIPVisionModel.from_pretrained(
                folder / "image_encoder", local_files_only=True, dtype=dtype, **variant(folder / "image_encoder")
            )
            config, tensors, networks = read_components(folder, dtype)
            model = build(config, tensors, str(folder / "unet"), encoder.config.hidden_size).to(dtype)
            pipeline = MultiViewPipeline(unet=model.unet, **networks)
        return cls(pipeline, name, resampler=model.resampler, image_encoder=encoder, **options)

    @property
    def frames(self) -> int:
        return FRAMES

    def _encode_text(self, prompts: list[str], device: torch.device) -> TextEmbedding:
        """With a picture of nothing beside each."""
        text = super()._encode_text(prompts, device)
        features = text.sequence.new_zeros(1, 1 + self._patches, self.image_encoder.config.hidden_size)
        blank = torch.zeros(len(prompts), self.latent_shape[0] * self.latent_size**2, device=text.sequence.device)
        tokens = self._resampled(features).to(text.sequence).expand(len(prompts), -1, -1)
        return replace(text, sequence=torch.cat([text.sequence, tokens], 1), pooled=blank)

    @property
    def _patches(self) -> int:
        config = self.image_encoder.config
        return (config.image_size // config.patch_size) ** 2

    def _resampled(self, features: Float[Tensor, "B L F"]) -> Float[Tensor, "B T D"]:
        device = features.device
        return self.resampler.to(device)(features.to(next(self.resampler.parameters()).dtype))

    @torch.no_grad()
    def with_picture(self, text: TextEmbedding, picture: Float[Tensor, "3 H W"]) -> TextEmbedding:
        """The same prompts beside a picture.

        Args:
            text: of :meth:`embed`.
            picture: square, sRGB in [0, 1], the thing over white.
        """
        place = torch.device("cpu") if self.memory.offload else self.device
        self._set_aside()
        side = self.image_encoder.config.image_size
        mean, std = (torch.tensor(values, device=place).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
        images = (resized(picture[None].to(place), side, side, "bicubic") - mean) / std
        with one_at_a_time([self.image_encoder], place):
            states = self.image_encoder(images.to(self.image_encoder.dtype), output_hidden_states=True).hidden_states
        tokens = self._resampled(states[-2]).to(text.sequence)
        small = resized(picture[None].to(self.device), self.image_size, self.image_size)
        latent = self.encode(small[None]).flatten(1)
        sequence = torch.cat([text.sequence[:, : -self.tokens], tokens.expand(len(text), -1, -1)], 1)
        return replace(text, sequence=sequence, pooled=latent.expand(len(text), -1))

    def network(
        self,
        x_t: Float[Tensor, "G V C h w"],
        timesteps: Float[Tensor, " G"],
        text: TextEmbedding,
        negative: TextEmbedding,
        cameras: Cameras,
    ) -> tuple[Float[Tensor, "G V C h w"], Float[Tensor, "G V C h w"]]:
        groups, views = x_t.shape[:2]
        slots = torch.cat([x_t, torch.zeros_like(x_t[:, :1])], 1)  # pictures come in where their branch is known

        def of_frames(embedding: TextEmbedding) -> TextEmbedding:
            rows = torch.arange(groups * views, device=x_t.device).view(groups, views)
            return embedding.expand(groups * views)[torch.cat([rows, rows[:, -1:]], 1).flatten()]

        wanted = of_frames(text)
        unwanted = wanted if negative is text else of_frames(negative)
        cond, neg = super().network(slots, timesteps, wanted, unwanted, cameras)
        return cond[:, :views], neg[:, :views]

    def _latents(self, x: Float[Tensor, "B C h w"], text: TextEmbedding) -> Float[Tensor, "B C h w"]:
        """With each branch's picture as the last view of every set."""
        assert text.pooled is not None
        sets = x.unflatten(0, (-1, FRAMES))
        pictures = text.pooled.view(-1, FRAMES, *x.shape[1:])[:, -1:]
        return torch.cat([sets[:, :-1], pictures.to(x)], 1).flatten(0, 1)

    def _conditions(self, text: TextEmbedding, cameras: Cameras) -> dict[str, Any]:
        """The picture has no camera."""
        rows = len(text) // FRAMES * self.views
        labels = super()._conditions(text[:rows], cameras)["class_labels"].unflatten(0, (-1, self.views))
        return {"class_labels": torch.cat([labels, torch.zeros_like(labels[:, :1])], 1).flatten(0, 1)}
