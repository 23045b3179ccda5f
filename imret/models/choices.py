"""The few models worth choosing from, by short names, and what is published of each.

Parameters, dimensions and size follow from open_clip's configuration, which a test compares. Figures stand as
their source has them; one that has none is None.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from imret.defaults import DEFAULT_MODEL

# Accuracy and recall are as open_clip's authors measured all of them in one way.
_OPEN_CLIP = "https://github.com/mlfoundations/open_clip/blob/05e7db4987eda177906dc164b4c3ebeb39a9991a/docs"
OPEN_CLIP_ACCURACY = f"{_OPEN_CLIP}/openclip_classification_results.csv"
OPEN_CLIP_RETRIEVAL = f"{_OPEN_CLIP}/openclip_retrieval_results.csv"
BIOCLIP_SPECIES = (
    "https://github.com/Imageomics/bioclip-2/blob/02b2d37d088882efd6133a8e9ce8f4d5d1dce1e9/index.html"
)


@dataclass(frozen=True)
class Choice:
    """One model of the list.

    Attributes:
        name: The short name.
        model: The name that a collection keeps, as `imret.models.resolve.resolve_model` takes it.
        repo: Of the Hugging Face hub, where its weights lie.
        arch: open_clip's name of its architecture.
        good_for: What speaks for it, in a few words.
        parameters: Of both towers.
        dim: Length of an embedding.
        licence: Of the weights, as the model's page on the hub has it.
        imagenet: Zero-shot accuracy on ImageNet, in percent.
        flickr: Share of Flickr30k's captions that find their picture first, in percent.
        coco: The same of COCO's captions.
        species: Mean zero-shot accuracy over ten sets of species, in percent.
        sources: Where the figures stand, by their names here.
        extra: What has to be installed for it, such as "transformers".
        smaller: The short name of what does the same in less time; None if there is none.
    """

    name: str
    model: str
    repo: str
    arch: str
    good_for: str
    parameters: int
    dim: int
    licence: str
    imagenet: float | None = None
    flickr: float | None = None
    coco: float | None = None
    species: float | None = None
    sources: dict[str, str] = field(default_factory=dict)
    extra: str | None = None
    smaller: str | None = None

    @property
    def size_bytes(self) -> int:
        """What is downloaded, about: the weights are stored as float32, with a few kilobytes beside them."""
        return 4 * self.parameters


def gigabytes(size_bytes: int) -> str:
    """Return a size as people compare it with their disk: "0.6 GB"; of less than 50 MB "3.2 MB"."""
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 5e7 else f"{size_bytes / 1e6:.1f} MB"


_MEASURED = {"imagenet": OPEN_CLIP_ACCURACY, "flickr": OPEN_CLIP_RETRIEVAL, "coco": OPEN_CLIP_RETRIEVAL}

CHOICES = {
    choice.name: choice
    for choice in (
        Choice(
            name="small",
            model="ViT-B-32-256/datacomp_s34b_b86k",
            repo="laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K",
            arch="ViT-B-32-256",
            good_for="the fastest; for a laptop",
            parameters=151_288_833,
            dim=512,
            licence="MIT",
            imagenet=72.81,
            flickr=64.92,
            coco=39.93,
            sources=_MEASURED,
        ),
        Choice(
            name="base",
            model="ViT-B-16/datacomp_xl_s13b_b90k",
            repo="laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K",
            arch="ViT-B-16",
            good_for="sees smaller things than small",
            parameters=149_620_737,
            dim=512,
            licence="MIT",
            imagenet=73.49,
            flickr=67.56,
            coco=40.16,
            sources=_MEASURED,
            smaller="small",
        ),
        Choice(
            name="large",
            model="ViT-L-14/datacomp_xl_s13b_b90k",
            repo="laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K",
            arch="ViT-L-14",
            good_for="names things best",
            parameters=427_616_513,
            dim=768,
            licence="MIT",
            imagenet=79.21,
            flickr=73.38,
            coco=45.73,
            sources=_MEASURED,
            smaller="base",
        ),
        Choice(
            name="huge",
            model=DEFAULT_MODEL,
            repo="laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
            arch="ViT-H-14",
            good_for="understands sentences best; the default",
            parameters=986_109_441,
            dim=1024,
            licence="MIT",
            imagenet=77.96,
            flickr=77.64,
            coco=49.48,
            sources=_MEASURED,
            smaller="base",
        ),
        Choice(
            name="multilingual",
            model="ViT-B-16-SigLIP-i18n-256/webli",
            repo="timm/ViT-B-16-SigLIP-i18n-256",
            arch="ViT-B-16-SigLIP-i18n-256",
            good_for="words in many languages",
            parameters=370_626_050,
            dim=768,
            licence="Apache-2.0",
            imagenet=75.13,
            flickr=72.16,
            coco=44.92,
            sources=_MEASURED,
            extra="transformers",
        ),
        Choice(
            name="biology",
            model="hf-hub:imageomics/bioclip-2",
            repo="imageomics/bioclip-2",
            arch="ViT-L-14",
            good_for="species by their names (BioCLIP 2)",
            parameters=427_616_513,
            dim=768,
            licence="MIT",
            species=55.6,
            sources={"species": BIOCLIP_SPECIES},
        ),
    )
}


def choice_of(name: str) -> Choice | None:
    """Return the choice of a short name, or of the model that it stands for; None of any other."""
    return CHOICES.get(name) or next((choice for choice in CHOICES.values() if choice.model == name), None)


def smaller_than(model: str) -> Choice | None:
    """Return the choice to offer to who finds a model too large or too slow; None if there is none.

    Args:
        model: Its short or its whole name. Of a model that is no choice nothing is known.
    """
    choice = choice_of(model)
    return None if choice is None or choice.smaller is None else CHOICES[choice.smaller]
