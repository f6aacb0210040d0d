"""Put a trained prior into the package, or a checkpoint into the repository, with the lists of what it knows.

cd tools
python -m mini.ship ../runs/prior/pipeline --pack PACK
python -m mini.ship ../runs/prior/pipeline --pack PACK --out mini/checkpoints/prior
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from mini.names import spoken
from mini.networks import SHARD
from mini.pack import Pack
from mini.scenes import vocabulary
from mini.words import SPECIAL, known_words, phrase_vectors, pieces
from mini.world import SIZE_WORDS
from psd_gs.priors.mini import folder
from psd_gs.priors.multiview_pipeline import MultiViewPipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=Path, help="folder that mini.train_prior wrote")
    parser.add_argument("--pack", type=Path, required=True, help="folder of the pack")
    parser.add_argument("--out", type=Path, default=folder("prior"), help="folder that is replaced")
    args = parser.parse_args()
    pipeline = MultiViewPipeline.from_pretrained(args.pipeline, dtype=torch.float16)
    shutil.rmtree(args.out, ignore_errors=True)
    pipeline.save_pretrained(args.out, max_shard_size=SHARD)
    write_lists(Pack(args.pack), pipeline, args.out)


def write_lists(pack: Pack, pipeline: MultiViewPipeline, out: Path) -> None:
    """``names.tsv`` and ``names.safetensors`` (things, and vectors of all their phrases), and ``words.txt``."""
    names = sorted(pack.names.values(), key=lambda name: (name.category, name.caption))
    rows = [(name.category, name.caption, "|".join(spoken(name)[1:])) for name in names]
    lines = ["category\tname\tsynonyms", *("\t".join(row) for row in rows)]
    (out / "names.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    phrases = list(dict.fromkeys(phrase for name in names for phrase in spoken(name)))
    table = pipeline.text_encoder.get_input_embeddings().weight.float()[len(SPECIAL) :]
    vectors = phrase_vectors(phrases, known_words(), table)
    save_file({"phrases": vectors.half()}, out / "names.safetensors")
    words = {word for phrase in (*phrases, *vocabulary(), *SIZE_WORDS) for word in pieces(phrase)}
    (out / "words.txt").write_text("\n".join(sorted(words)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
