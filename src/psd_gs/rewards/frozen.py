"""Networks that others have trained, which the embedded judge reads: what it sees and hears is not of our making.

* EfficientNet-Lite0 (Tan and Le, arXiv 1905.11946; the variant without squeeze-and-excitation) trained on ImageNet.
* all-MiniLM-L6-v2, a sentence encoder (Reimers and Gurevych, arXiv 1908.10084).

Both stay as they are; a linear layer behind each is trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

if TYPE_CHECKING:
    from psd_gs.rewards.mini import RewardConfig

STAGES = (
    (3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)  # fmt: skip
"""EfficientNet-Lite0: kernel, stride of the first block, expansion, channels, blocks."""
READ = (2, 4, 6)
"""Stages whose last features are read, at strides 8, 16 and 32."""
STEM = 32
CELL = 16
"""Pixels per side of a token."""


def same_pad(x: Float[Tensor, "B C H W"], kernel: int, stride: int) -> Float[Tensor, "B C h w"]:
    """TensorFlow's padding: as many outputs as there are whole or begun strides, the odd zero behind."""
    total = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:]]
    return F.pad(x, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))


class InvertedBottleneck(nn.Module):
    """MBConv (1801.04381) without excitation, its normalizations folded into the convolutions."""

    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = before * expansion
        self.expand = nn.Conv2d(before, inner, 1) if expansion > 1 else None
        self.depthwise = nn.Conv2d(inner, inner, kernel, stride, groups=inner)
        self.project = nn.Conv2d(inner, after, 1)
        self.kernel, self.stride, self.residual = kernel, stride, stride == 1 and before == after

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        y = F.relu6(self.expand(x)) if self.expand is not None else x
        y = F.relu6(self.depthwise(same_pad(y, self.kernel, self.stride)))
        y = self.project(y)
        return x + y if self.residual else y


class LiteFeatures(nn.Module):
    """EfficientNet-Lite0 up to its last block; pictures in [-1, 1]."""

    channels = sum(STAGES[i][3] for i in READ)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, STEM, 3, 2)
        self.blocks = nn.ModuleList()
        before = STEM
        self.ends = []
        for kernel, stride, expansion, channels, count in STAGES:
            for i in range(count):
                self.blocks.append(InvertedBottleneck(before, channels, kernel, stride if i == 0 else 1, expansion))
                before = channels
            self.ends.append(len(self.blocks) - 1)

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B C h w"]]:
        """Features of the stages of ``READ``."""
        images = images.contiguous(memory_format=torch.channels_last)  # 1.4 times as fast on a CPU
        x = F.relu6(self.stem(same_pad(images, 3, 2)))
        out = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in [self.ends[stage] for stage in READ]:
                out.append(x)
        return out


class LiteTower(nn.Module):
    """Tokens of cells of ``CELL`` pixels: features of three stages brought to one grid, then a trained projection."""

    def __init__(self, config: RewardConfig) -> None:
        super().__init__()
        self.features = LiteFeatures().requires_grad_(False)
        self.norm = nn.LayerNorm(LiteFeatures.channels)
        self.project = nn.Linear(LiteFeatures.channels, config.width)

    def forward(self, images: Float[Tensor, "B 3 H W"], views: int) -> Float[Tensor, "B L D"]:
        fine, middle, coarse = self.features(images)
        size = middle.shape[-2:]
        maps = F.adaptive_avg_pool2d(fine, size), middle, F.interpolate(coarse, size)
        return self.project(self.norm(torch.cat(maps, 1).flatten(2).transpose(1, 2)))


class SentenceEncoder(nn.Module):
    """States of all tokens of a BERT without pooling, then a trained projection; token 0 is the padding."""

    def __init__(self, config: RewardConfig) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        hidden = config.text_width
        bert = BertConfig(
            vocab_size=config.vocab_size, hidden_size=hidden, num_hidden_layers=config.text_layers,
            num_attention_heads=hidden // 32, intermediate_size=4 * hidden,
            max_position_embeddings=config.text_length, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            attn_implementation="eager",
        )  # fmt: skip
        self.encoder = BertModel(bert, add_pooling_layer=False).requires_grad_(False)
        self.norm = nn.LayerNorm(hidden)
        self.project = nn.Linear(hidden, config.width)

    def forward(self, ids: Int[Tensor, "P T"]) -> tuple[Float[Tensor, "P T D"]]:
        states = self.encoder(input_ids=ids, attention_mask=(ids != 0).long()).last_hidden_state
        return (self.project(self.norm(states)),)
