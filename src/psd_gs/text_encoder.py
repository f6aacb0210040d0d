"""Tokens and the text encoder of the embedded models, as transformers computes them, without importing it.

``transformers`` takes seconds to import, more than everything that these small networks are asked for in a run. Both
classes read the files that ``CLIPTokenizer``, ``PreTrainedTokenizerFast`` and ``CLIPTextModel`` write, and answer to
the bit what those do.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

_FILES = ("tokenizer.json", "tokenizer_config.json")


class Tokens(NamedTuple):
    """What a tokenizer answers."""

    input_ids: Int[Tensor, "B L"]


class Tokenizer:
    """Words to numbers by a ``tokenizer.json``.

    Args:
        folder: with ``tokenizer.json`` and ``tokenizer_config.json``.

    Raises:
        OSError: a file is missing.
        ValueError: a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer as Compiled

        self.folder = folder
        options = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        self._compiled = Compiled.from_buffer((folder / "tokenizer.json").read_bytes())
        self.model_max_length: int = options["model_max_length"]
        self._padding: str = options["pad_token"]

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Tokenizer:
        """What a folder holds."""
        return cls(Path(folder))

    def __len__(self) -> int:
        return self._compiled.get_vocab_size(with_added_tokens=True)

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        max_length: int,
        padding: str = "max_length",
        truncation: bool = True,
        return_tensors: str = "pt",
    ) -> Tokens:
        """One row per prompt, cut or padded to ``max_length``: of the options of transformers the only ones there are.

        Raises:
            ValueError: other options.
        """
        if (padding, truncation, return_tensors) != ("max_length", True, "pt"):
            raise ValueError("expected padding='max_length', truncation=True and return_tensors='pt'")
        self._compiled.enable_truncation(max_length)
        self._compiled.enable_padding(
            length=max_length, pad_id=self._compiled.token_to_id(self._padding), pad_token=self._padding
        )
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        return Tokens(torch.tensor([row.ids for row in self._compiled.encode_batch(texts)]))

    def save_pretrained(self, folder: str | Path) -> None:
        """Copy the files."""
        for name in _FILES:
            shutil.copyfile(self.folder / name, Path(folder) / name)


class TextEncoder(nn.Module):
    """CLIP's text transformer (Radford et al., 2103.00020): causal, normalized before each layer; states of all tokens.

    Args:
        vocab_size: entries of the tokenizer.
        width: channels.
        inner: channels inside of the perceptrons.
        layers: of the transformer.
        heads: of attention.
        length: most tokens.
        fused: attend by torch's fused kernel; written out, the backward pass is faster on CPUs.
    """

    def __init__(
        self, *, vocab_size: int, width: int, inner: int, layers: int, heads: int, length: int, fused: bool = True
    ) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict(
            {"token_embedding": nn.Embedding(vocab_size, width), "position_embedding": nn.Embedding(length, width)}
        )
        self.encoder = nn.ModuleDict(
            {"layers": nn.ModuleList(_Layer(width, inner, heads, fused) for _ in range(layers))}
        )
        self.final_layer_norm = nn.LayerNorm(width)
        self._initialize(width, layers)

    @classmethod
    def from_pretrained(cls, folder: Path, dtype: torch.dtype = torch.float32) -> TextEncoder:
        """What ``CLIPTextModel.save_pretrained`` wrote.

        Raises:
            OSError: a file is missing.
            ValueError: another architecture.
            RuntimeError: the weights do not fit the configuration.
        """
        from safetensors.torch import load_file

        c = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if (c["hidden_act"], c["layer_norm_eps"]) != ("quick_gelu", 1e-5):
            raise ValueError(f"expected quick_gelu and an epsilon of 1e-05, received {c['hidden_act']}")
        sizes = {"width": c["hidden_size"], "inner": c["intermediate_size"], "layers": c["num_hidden_layers"]}
        with torch.random.fork_rng(devices=[]):  # not on the meta device: drawing there imports torch's compiler
            encoder = cls(
                vocab_size=c["vocab_size"], heads=c["num_attention_heads"], length=c["max_position_embeddings"], **sizes
            )
        state = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
        encoder.load_state_dict(state, assign=True)
        return encoder

    @property
    def device(self) -> torch.device:
        return self.final_layer_norm.weight.device

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of word vectors."""
        return self.embeddings["token_embedding"]  # type: ignore[return-value]

    def forward(self, input_ids: Int[Tensor, "B L"]) -> tuple[Float[Tensor, "B L D"]]:
        table, places = self.embeddings["token_embedding"], self.embeddings["position_embedding"]
        x = table(input_ids) + places(torch.arange(input_ids.shape[1], device=input_ids.device)[None])
        for layer in self.encoder["layers"]:  # type: ignore[attr-defined]
            x = layer(x)
        return (self.final_layer_norm(x),)

    @torch.no_grad()
    def _initialize(self, width: int, layers: int) -> None:
        """CLIP's initial weights."""
        inward, outward = (2 * layers * width) ** -0.5, width**-0.5
        deviations = {"q_proj": inward, "k_proj": inward, "v_proj": inward, "out_proj": outward, "fc2": inward}
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding):
                module.weight.normal_(std=0.02)
            elif isinstance(module, nn.Linear):
                module.weight.normal_(std=deviations.get(name.rpartition(".")[2], (2 * width) ** -0.5))
                module.bias.zero_()


class _Layer(nn.Module):
    def __init__(self, width: int, inner: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        names = ("k_proj", "v_proj", "q_proj", "out_proj")
        self.self_attn = nn.ModuleDict({name: nn.Linear(width, width) for name in names})
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, inner), "fc2": nn.Linear(inner, width)})

    def forward(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        x = x + self._attend(self.layer_norm1(x))
        inner = self.mlp["fc1"](self.layer_norm2(x))
        return x + self.mlp["fc2"](inner * torch.sigmoid(1.702 * inner))

    def _attend(self, x: Float[Tensor, "B L D"]) -> Float[Tensor, "B L D"]:
        query, key, value = (
            self.self_attn[name](x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        if self.fused:
            out = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            length, least = x.shape[1], torch.finfo(x.dtype).min
            later = torch.full((length, length), least, dtype=x.dtype, device=x.device).triu(1)
            logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + later
            out = logits.softmax(-1, dtype=torch.float32).to(query.dtype) @ value
        return self.self_attn["out_proj"](out.transpose(1, 2).flatten(2))
