"""What a prior's own samples are taken for, one name among 20, by a network that nobody here has trained.

    cd tools
    python -m mini.check_names --pack PACK ../runs/prior/pipeline --sheet names.png

The features are those of EfficientNet-Lite0 (ImageNet); a set belongs to the name whose renders are nearest in the
mean. The generator's own renders of the same size, other ones, are put to the same question beside: the bound of this
judge. It knows names alone, no colours and no relations.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mini.dataset import sample_background, sample_light
from mini.names import HELD
from mini.pack import Pack
from mini.published import lite0_state
from mini.scenes import article
from mini.world import VIEWS, Group, World
from psd_gs.cameras import Cameras, turntable
from psd_gs.export.pictures import contact_sheet
from psd_gs.priors.mini import computes_in_bfloat16
from psd_gs.priors.multiview_pipeline import MultiViewPipeline
from psd_gs.rewards.frozen import LiteFeatures

SHOWN = 4
"""Renders of each name that its mean is of."""
SIZE = 128
"""Pixels per side that the network sees; smaller pictures are enlarged."""


def cameras_of(size: int) -> Cameras:
    """Of samples and renders: around the thing, the first in front."""
    return turntable(VIEWS, elevation=15.0, radius=0.68, size=size)


@dataclass(frozen=True)
class Asked:
    """A question: which of the names is shown?

    Attributes:
        said: what the prior is told: the name, or a synonym of it.
        name: the right answer.
        others: the wrong ones.
    """

    said: str
    name: str
    others: list[str]


def asked_for(world: World, synonyms: bool = False) -> list[Asked]:
    """The report's names, or its synonyms, as far as there are meshes of them."""
    if synonyms:
        rows = [Asked(row["synonym"], row["names"][0], row["others"]) for row in HELD["synonym_tests"]]
    else:
        rows = [Asked(row["name"], row["name"], row["others"]) for row in HELD["names"]]
    solid = {name.caption for name in world.solids}
    return [replace(row, others=[o for o in row.others if o in solid]) for row in rows if row.name in solid]


def pictures(group: Group) -> Float[Tensor, "V 3 H W"]:
    """In [0, 1]."""
    return group.images.float() / 255


def drawn(world: World, name: str, number: int) -> Group:
    """A variant of a thing from the cameras of the samples."""
    rng = random.Random(f"{name}/{number}")
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    surface = world.thing(world.names[name], rng, coloured=0.0).surface
    light, background = sample_light(1, generator)[0], sample_background(1, generator)[0]
    return world.views(surface, name, cameras_of(world.size), light, background)


class Nearest:
    """Names by the nearest mean of frozen features.

    Args:
        world: what draws the renders.
        names: all that are asked for.
    """

    def __init__(self, world: World, names: list[str]) -> None:
        self.network = LiteFeatures().eval()
        self.network.load_state_dict(lite0_state())
        means = torch.stack(
            [torch.stack([self.of(pictures(drawn(world, name, i))) for i in range(SHOWN)]).mean(0) for name in names]
        )
        self.centre, self.spread = means.mean(0), means.std(0) + 1e-6
        self.means = dict(zip(names, self._standard(means), strict=True))

    @torch.no_grad()
    def of(self, views: Float[Tensor, "V 3 H W"]) -> Float[Tensor, " D"]:
        """Features of a set, enlarged to the network's size: means over pixels and views."""
        large = F.interpolate(views, (SIZE, SIZE), mode="bilinear")
        return torch.cat([stage.mean((0, 2, 3)) for stage in self.network(2 * large - 1)[1:]])

    def _standard(self, features: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return F.normalize((features - self.centre) / self.spread, dim=-1)

    def chosen(self, views: Float[Tensor, "V 3 H W"], names: list[str]) -> str:
        """Which of the names a set is taken for."""
        likeness = torch.stack([self.means[name] for name in names]) @ self._standard(self.of(views))
        return names[int(likeness.argmax())]


@torch.no_grad()
def painted(pipeline: MultiViewPipeline, prompts: list[str], steps: int) -> Float[Tensor, "P V 3 H W"]:
    """Samples of the prior, eight prompts at a time."""
    size = pipeline.unet.config.sample_size * pipeline.config.patch
    generator = torch.Generator().manual_seed(0)
    sets = []
    for start in range(0, len(prompts), 8):
        with torch.autocast("cpu", torch.bfloat16, enabled=computes_in_bfloat16()):
            sets.append(
                pipeline(
                    prompts[start : start + 8], cameras_of(size), generator=generator, output_type="pt",
                    num_inference_steps=steps,
                ).images.float()
            )  # fmt: skip
        print(f"\r{min(start + 8, len(prompts))} of {len(prompts)} painted", end="", flush=True)
    print()
    return torch.cat(sets)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipelines", type=Path, nargs="+", help="saved pipelines to compare")
    parser.add_argument("--pack", type=Path, required=True, help="folder of the pack")
    parser.add_argument("--synonyms", action="store_true", help="ask for the held-out synonyms in place of the names")
    parser.add_argument("--rows", type=int, help="no more than so many of the list")
    parser.add_argument("--steps", type=int, default=15, help="of sampling")
    parser.add_argument("--sheet", type=Path, help="picture of what was painted, by the last pipeline")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pack = Pack(args.pack)
    for folder in args.pipelines:
        pipeline = MultiViewPipeline.from_pretrained(folder, dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        world = World(pack, pipeline.unet.config.sample_size * pipeline.config.patch)
        rows = asked_for(world, args.synonyms)[: args.rows]
        judge = Nearest(world, sorted({name for row in rows for name in (row.name, *row.others)}))
        prompts = [article(row.said) if world.names[row.name].article else row.said for row in rows]
        sets = painted(pipeline, prompts, args.steps)
        taken, own = (
            [judge.chosen(views, [row.name, *row.others]) for views, row in zip(shown, rows, strict=True)]
            for shown in (sets, [pictures(drawn(world, row.name, SHOWN)) for row in rows])
        )
        right, bound = (sum(a == row.name for a, row in zip(answers, rows, strict=True)) for answers in (taken, own))
        print(f"{str(folder)[-40:]:40} {right} of {len(rows)}, the generator's own renders {bound}", flush=True)
    if args.sheet:
        captions = [text for pair in zip(prompts, taken, strict=True) for text in (*pair, "", "")]
        tiles = [*sets.flatten(0, 1).permute(0, 2, 3, 1)]
        contact_sheet(tiles, args.sheet, captions=captions, columns=4 * VIEWS, size=SIZE)


if __name__ == "__main__":
    main()
