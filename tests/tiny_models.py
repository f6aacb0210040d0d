"""The smallest diffusers pipelines of every family, with random weights, through the real classes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModel,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from psd_gs.priors import mini
from psd_gs.priors.imagedream import ImageDreamUNet
from psd_gs.priors.multiview_pipeline import MultiViewPipeline
from psd_gs.priors.mvdream import SD21_4VIEW, original_names, scheduler, unet_config

WIDTH = 32
LDM = SD21_4VIEW | {
    "image_size": 8,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "attention_resolutions": [2, 1],
    "num_res_blocks": 1,
    "num_head_channels": 16,
    "context_dim": WIDTH,
}
"""MVDream's U-Net in latent diffusion's fields, tiny."""


def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(mini.folder("prior") / "tokenizer")


def clip(kind=CLIPTextModel, **options):
    words = tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=words.model_max_length,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
        **options,
    )
    return kind(config)


def clip_vision() -> CLIPVisionModel:
    torch.manual_seed(0)
    return CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
            hidden_act="gelu",
        )
    )


def vae(channels: int = 4, **options) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=channels,
        sample_size=64,
        **options,
    )


def unet(**options) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=8,
        **({"attention_head_dim": 4, "cross_attention_dim": WIDTH} | options),
    )


def levels(kind=PNDMScheduler, **options):
    return kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, **options)


def sd(prediction: str = "epsilon") -> StableDiffusionPipeline:
    torch.manual_seed(0)
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip(),
        tokenizer=tokenizer(),
        unet=unet(),
        scheduler=levels(prediction_type=prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> StableDiffusionXLPipeline:
    torch.manual_seed(0)
    return StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025, force_upcast=True),
        text_encoder=clip(),
        text_encoder_2=clip(CLIPTextModelWithProjection, projection_dim=24),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=unet(
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 24,
            use_linear_projection=True,
            transformer_layers_per_block=(1, 2),
        ),
        scheduler=levels(EulerDiscreteScheduler, timestep_spacing="leading"),
    )


def t5() -> tuple[T5EncoderModel, T5TokenizerFast]:
    from tokenizers import Tokenizer
    from tokenizers.models import Unigram
    from tokenizers.processors import TemplateProcessing

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    words = Tokenizer(Unigram(pieces, unk_id=2))
    words.post_processor = TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    fast = T5TokenizerFast(tokenizer_object=words, extra_ids=0, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    config = T5Config(vocab_size=len(pieces), d_model=80, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config), fast


def sd3(*, with_t5: bool = True) -> StableDiffusion3Pipeline:
    torch.manual_seed(0)
    encoder, words = t5() if with_t5 else (None, None)
    pooled = {"projection_dim": 24}
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=8,
            out_channels=8,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=80,
            caption_projection_dim=16,
            pooled_projection_dim=48,
            pos_embed_max_size=16,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(8, shift_factor=0.0609, scaling_factor=1.5305, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip(CLIPTextModelWithProjection, **pooled),
        tokenizer=tokenizer(),
        text_encoder_2=clip(CLIPTextModelWithProjection, **pooled),
        tokenizer_2=tokenizer(),
        text_encoder_3=encoder,
        tokenizer_3=words,
    )


def mvdream() -> MultiViewPipeline:
    torch.manual_seed(0)
    network = UNet2DConditionModel(**unet_config(LDM))
    return MultiViewPipeline(tokenizer(), clip(), network, scheduler(), vae(), views=4)


def save_mvdream(folder: Path) -> MultiViewPipeline:
    """Lay out ``folder`` as the published diffusers-format repositories are: original names, foreign classes."""
    pipeline = mvdream()
    names = original_names(pipeline.unet)
    tensors = {names[ours]: tensor.contiguous() for ours, tensor in pipeline.unet.state_dict().items()}
    _lay_out(folder, pipeline, tensors, LDM)
    return pipeline


def save_imagedream(folder: Path) -> None:
    """Likewise, with an encoder of pictures, as the published repository of ImageDream is."""
    fields = LDM | {"ip_dim": 16}
    _lay_out(folder, mvdream(), imagedream_tensors(fields, WIDTH), fields | {"ip_weight": 1.0}, clip_vision())


def imagedream_tensors(fields: dict, features: int) -> dict[str, torch.Tensor]:
    """Of a network with random weights, under their original names."""
    torch.manual_seed(0)
    model = ImageDreamUNet(fields, features)
    tensors: dict[str, torch.Tensor] = {}
    for ours, theirs in model.original_names().items():  # keys before values
        tensor = model.state_dict()[ours]
        tensors[theirs] = torch.cat([tensors[theirs], tensor]) if theirs in tensors else tensor.contiguous()
    return tensors


def _lay_out(folder: Path, pipeline: MultiViewPipeline, tensors: dict, fields: dict, encoder=None) -> None:
    from safetensors.torch import save_file

    for part in ("tokenizer", "text_encoder", "vae", "scheduler"):
        getattr(pipeline, part).save_pretrained(folder / part)
    if encoder:
        encoder.save_pretrained(folder / "image_encoder")
    (folder / "unet").mkdir()
    save_file(tensors, folder / "unet" / "diffusion_pytorch_model.safetensors")
    fields = {"_class_name": "MultiViewUNetModel", "_diffusers_version": "0.25.0", **fields}
    (folder / "unet" / "config.json").write_text(json.dumps(fields))
    (folder / "unet" / "mv_unet.py").write_text("raise RuntimeError('remote code was run')\n")
    index = {
        "_class_name": "MVDreamPipeline",
        "_diffusers_version": "0.25.0",
        "feature_extractor": [None, None],
        "image_encoder": ["transformers", "CLIPVisionModel"] if encoder else [None, None],
        "requires_safety_checker": False,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["mv_unet", "MultiViewUNetModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


PIPELINES = {"sd15": sd, "sd21": lambda: sd("v_prediction"), "sdxl": sdxl, "sd3": sd3, "mvdream": mvdream}
"""Of every family, by the name of its published model."""
