"""The model card (`README.md`) of a converted checkpoint: Hub metadata, how to use it, where it comes from.

Published results stand there as published by the papers' authors; nothing in a card is measured by the conversion.
"""

import re

from huggingface_hub import ModelCardData
from transformers import PreTrainedConfig

from maftplus.conversion.released import MAFT_KINDS

PUBLISHED_MIOU = {  # mIoU on, PC-459, PC-59, PAS-20, as the papers and the released tables give it
    "MAFT ViT-B": (10.25, 29.14, 12.85, 53.33, 90.44),
    "MAFT ViT-L": (12.12, 32.05, 15.68, 58.01, 92.14),
    "MAFT+ base": (13.8, 34.6, 16.2, 57.5, 95.4),
    "MAFT+ large": (15.1, 36.1, 21.6, 59.4, 96.5),
    "FC-CLIP large": (14.8, 34.1, 18.2, 58.4, 95.4),
}
PUBLISHED_PANOPTIC = {"MAFT+ large": (27.1, 73.5, 32.9)}  # PQ, SQ, RQ on ADE20K
PAPERS = {
    "maftplus": ("MAFT+", "2408.00744", "https://github.com/jiaosiyu1999/MAFT-Plus"),
    "fcclip": ("FC-CLIP", "2308.02487", "https://github.com/bytedance/fc-clip"),
    "maft": ("MAFT", "2310.00240", "https://github.com/jiaosiyu1999/MAFT"),
    "freeseg": ("FreeSeg, as MAFT starts from it,", "2303.17225", "https://github.com/jiaosiyu1999/MAFT"),
    "open_clip": ("OpenCLIP", "2212.07143", "https://github.com/mlfoundations/open_clip"),
    "openai_clip": ("CLIP", "2103.00020", "https://github.com/openai/CLIP"),
}
# Of the released weights' repositories; MAFT's states none.
LICENSES = {"maftplus": "mit", "fcclip": "apache-2.0", "open_clip": "mit", "openai_clip": "mit"}
# By size and, for a ViT, patch and image size.
BASE_MODELS = {
    "base": "laion/CLIP-convnext_base_w_320-laion_aesthetic-s13B-b82K-augreg",
    "large": "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
    ("ViT-B", 16, 224): "openai/clip-vit-base-patch16",
    ("ViT-B", 32, 224): "openai/clip-vit-base-patch32",
    ("ViT-L", 14, 224): "openai/clip-vit-large-patch14",
    ("ViT-L", 14, 336): "openai/clip-vit-large-patch14-336",
}

SEGMENT = """```python
from transformers import pipeline

segmenter = pipeline("image-segmentation", model="PATH", trust_remote_code=True)
labels = ["person, man, woman", "dog", "grass"]
segmenter("picture.jpg", candidate_labels=labels, stuff_labels=["grass"], subtask="SUBTASK")
```
SYNONYMS"""
SYNONYMS = (
    "A class is a string with synonyms separated by commas; a mask's score for a class is the best over its synonyms."
)
WHOLE_NAMES = "A class is a string, commas included, as in the released code; a class with synonyms is a list of them."

EMBED = """```python
from transformers import AutoModel

clip = AutoModel.from_pretrained("PATH", trust_remote_code=True)
clip.get_mask_features(pixel_values, masks)  # (B, Q, D): CLIP embeddings of any masks, to compare with text
```"""


def model_card(
    kind: str, name: str, task: str | None, config: PreTrainedConfig, source_name: str, notes: list[str]
) -> str:
    """
    The card's text.

    Args:
        kind: "maftplus", "fcclip", "maft", "freeseg", "open_clip" or "openai_clip".
        name: What people call the variant ("MAFT+ base").
        task: "semantic", "panoptic", or None for a bare CLIP.
        source_name: File name of the original checkpoint.
        notes: Sentences about this conversion (what was left out, what the rules decided).
    """
    is_full = hasattr(config, "clip_config")
    paper, arxiv, repository = PAPERS[kind]
    usage = SEGMENT.replace("SYNONYMS", WHOLE_NAMES if kind in MAFT_KINDS else SYNONYMS) if is_full else EMBED
    usage = usage.replace("PATH", "path/or/hub-name").replace("SUBTASK", task or "semantic")
    title = f"{name}, {task}" if is_full else f"{name}: CLIP that takes masks"
    sections = [
        f"---\n{_metadata(kind, name, config)}\n---",
        f"# {title}",
        f"Weights in the format released with {paper} ([arXiv {arxiv}](https://arxiv.org/abs/{arxiv}), "
        f"[original code]({repository})), converted from {code_span(source_name)}. The numbers are the original's; "
        "only names and file format changed.",
        f"## Use\n\n{usage}",
        "## Conversion\n\n" + "\n".join(f"- {note}" for note in notes),
        *_published(kind, name, task),
        *_license_note(kind),
    ]
    return "\n\n".join(sections) + "\n"


def published_figures(name: str | None, task: str | None) -> str | None:
    """The paper's figures for a variant on one line; None where there are none."""
    if task == "panoptic" and name in PUBLISHED_PANOPTIC:
        return "PQ {}, SQ {}, RQ {}".format(*PUBLISHED_PANOPTIC[name])
    return " / ".join(map(str, PUBLISHED_MIOU[name])) if name in PUBLISHED_MIOU else None


def code_span(text: str) -> str:
    """Any text, such as a file's name, as code in Markdown: it stays on its line and nothing in it is markup."""
    printable = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    longest = max(map(len, re.findall("`+", printable)), default=0)
    fence, space = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{space}{printable}{space}{fence}"


def _metadata(kind: str, name: str, config: PreTrainedConfig) -> str:
    is_full = hasattr(config, "clip_config")
    license_fields = (
        {"license": LICENSES[kind]} if kind in LICENSES else {"license": "other", "license_name": "unstated"}
    )
    data = ModelCardData(
        **license_fields,
        library_name="transformers",
        pipeline_tag="image-segmentation" if is_full else "image-feature-extraction",
        base_model=_base_model(name, config),
        tags=[
            "open-vocabulary-segmentation",
            "clip",
            kind.replace("_", "-"),
            *(["image-segmentation"] if is_full else []),
        ],
    )
    return data.to_yaml()


def _base_model(name: str, config: PreTrainedConfig) -> str | None:
    """The released CLIP of these sizes; None where there is none."""
    size, vision = name.split()[-1], getattr(config, "clip_config", config).vision_config
    return BASE_MODELS.get(size if vision.model_type == "convnext" else (size, vision.patch_size, vision.image_size))


def _published(kind: str, name: str, task: str | None) -> list[str]:
    """The paper's own figures for the released variant; none where the card's model was not published with figures."""
    tables = []
    if task == "semantic" and name in PUBLISHED_MIOU:
        figures = " | ".join(map(str, PUBLISHED_MIOU[name]))
        tables.append(
            f"| mIoU | A-847 | A-150 | PC-459 | PC-59 | PAS-20 |\n|---|---|---|---|---|---|\n| {name} | {figures} |"
        )
    if task == "panoptic" and name in PUBLISHED_PANOPTIC and kind == "maftplus":
        figures = " | ".join(map(str, PUBLISHED_PANOPTIC[name]))
        tables.append(f"| ADE20K panoptic | PQ | SQ | RQ |\n|---|---|---|---|\n| {name} | {figures} |")
    if not tables:
        return []
    paper, arxiv, _ = PAPERS[kind]
    attribution = (
        f"**As published by the authors of {paper}** (arXiv {arxiv}) for the checkpoint they released in this size, "
        "with their code; not measured with this folder."
    )
    return ["## Published results\n\n" + "\n\n".join([attribution, *tables])]


def _license_note(kind: str) -> list[str]:
    if kind in LICENSES:
        return []
    return [
        "## License\n\nThe original repository states no license for these weights: ask its authors before sharing."
    ]


__all__ = ["code_span", "model_card", "published_figures"]
