"""Released models by name: where each comes from, what it is, what was published of it, and where it is kept here.

`maftplus get NAME` makes the folder `released_folder(NAME)`; `find_model(NAME)` turns a name into that folder wherever
a model is asked for. Nothing heavy is imported: commands look names up before they need torch.

Sources: the Drive identifiers stand in the READMEs of MAFT+, MAFT and FC-CLIP; OpenCLIP's weights are those that both
projects start from (`laion_aesthetic_s13b_b82k_augreg` and `laion2b_s29b_b131k_ft_soup` in OpenCLIP's own table).
"""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HOME_VARIABLE = "MAFTPLUS_HOME"
SHIPPED = {"shapes": Path(__file__).parents[1] / "models" / "shapes"}  # models that come with the package
CONFIG_FILE = "config.json"
DOWNLOADS = "downloads"  # beside the models: originals that are wanted, or not whole yet
BYTES_PER_PARAMETER = 4  # float32


@dataclass(frozen=True)
class DriveFile:
    """A file on Google Drive."""

    id: str

    @property
    def address(self) -> str:
        """What a person opens in a browser."""
        return f"https://drive.google.com/file/d/{self.id}/view"


@dataclass(frozen=True)
class HubFile:
    """The weight file of a repository on the Hub; which of its names it bears is looked up there."""

    repository: str

    @property
    def address(self) -> str:
        """What a person opens in a browser."""
        return f"https://huggingface.co/{self.repository}/tree/main"


@dataclass(frozen=True)
class Release:
    """
    A released model. What nobody stated is `None`: no released file was ever at hand here.

    Attributes:
        name: What `maftplus get` calls it.
        kind: As `released.detect_kind` gives it; tells paper, code and licence (`model_card.PAPERS`, `LICENSES`).
        variant: As `released.variant_name` gives it, which the published figures go by.
        task: "semantic" or "panoptic"; None for a bare CLIP.
        file_name: Of the original, as its project calls it.
        source: None if no public link is known.
        num_parameters: Numbers in the file, counted over the names that the original code builds.
        settings: The configuration as published, by the names of `released.main_settings`.
        training_classes: Shipped vocabulary that an ensemble of seen and unseen classes needs.
        sha256: Of the file, lower case, where somebody stated it (for FC-CLIP a third party's download script, not its
            authors): another one is told, not refused.
    """

    name: str
    kind: str
    variant: str | None
    task: str | None
    file_name: str
    source: DriveFile | HubFile | None
    num_parameters: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    training_classes: str | None = None
    sha256: str | None = None

    @property
    def num_bytes(self) -> int | None:
        """About the file's size, if its numbers are float32."""
        return None if self.num_parameters is None else self.num_parameters * BYTES_PER_PARAMETER


BASE_CLIP = {
    "joint_space": 640,
    "visual_projection": "linear",
    "vision": "ConvNeXt, widths [128, 256, 512, 1024], depths [3, 3, 27, 3]",
    "text": "width 640, 12 layers, 10 heads",
}
LARGE_CLIP = {
    "joint_space": 768,
    "visual_projection": "mlp",
    "vision": "ConvNeXt, widths [192, 384, 768, 1536], depths [3, 3, 27, 3]",
    "text": "width 768, 16 layers, 12 heads",
}
SEGMENTER = {"hidden_dim": 256, "encoder_layers": 6, "decoder_layers": 9, "num_attention_heads": 8}
FCCLIP_RULES = {"cdt_form": "off", "ensemble_alpha": 0.4, "ensemble_beta": 0.8}

RELEASES = {
    release.name: release
    for release in (
        Release(
            "maftplus-base",
            "maftplus",
            "MAFT+ base",
            "semantic",
            "maftp_b.pth",
            DriveFile("1BeEeKOnWWIWIH-QWK_zLhAPUzCOnHuFG"),
            num_parameters=381_189_359,
            settings={**BASE_CLIP, **SEGMENTER, "num_queries": 100, "cdt_form": "semantic"},
        ),
        Release(
            "maftplus-large",
            "maftplus",
            "MAFT+ large",
            "semantic",
            "maftp_l.pth",
            DriveFile("1EQo5guVuKkSSZj4bv0FQN_4X9h_Rwfe5"),
            num_parameters=727_144_687,
            settings={**LARGE_CLIP, **SEGMENTER, "num_queries": 100, "cdt_form": "semantic"},
        ),
        Release(
            "maftplus-large-panoptic",
            "maftplus",
            "MAFT+ large",
            "panoptic",
            "maftp_l_pano.pth",
            None,
            num_parameters=727_144_649,
            settings={**LARGE_CLIP, **SEGMENTER, "num_queries": 100, "cdt_form": "panoptic"},
        ),
        Release(
            "maft-vit-b",
            "maft",
            "MAFT ViT-B",
            "semantic",
            "MAFT_Vitb.pt",
            DriveFile("1J3QBMrU65pa8750q5hHiU7bTSsQ5gIAB"),
            num_parameters=390_751_539,
            settings={"joint_space": 512, "text": "width 512, 12 layers, 8 heads"},
        ),
        Release(
            "maft-vit-l",
            "maft",
            "MAFT ViT-L",
            "semantic",
            "MAFT_Vitl.pt",
            DriveFile("1qMhc13JEFbNuNFylD4OCxzEHQaaQ4O8g"),
            settings={"joint_space": 768, "text": "width 768, 12 layers, 12 heads"},
        ),
        Release(
            "freeseg",
            "freeseg",
            None,  # its page does not say which tower it has
            "semantic",
            "freeseg_model.pt",
            DriveFile("1vXelXYIBCpxJ3m4B-yDJSbZ1jiJZFjz7"),
        ),
        Release(
            "fcclip-large",
            "fcclip",
            "FC-CLIP large",
            "panoptic",
            "fcclip_cocopan.pth",
            DriveFile("1-91PIns86vyNaL3CzMmDD39zKGnPMtvj"),
            num_parameters=372_494_344,
            settings={**LARGE_CLIP, **SEGMENTER, "num_queries": 250, **FCCLIP_RULES},
            training_classes="coco_panoptic_133",
            sha256="241c141e0fec7f3be7e06915daee60807502de3b7ae8b8cbef2560d6df346257",
        ),
        Release(
            "clip-convnext-base-w-320",
            "open_clip",
            "OpenCLIP base",
            None,
            "open_clip_model.safetensors",
            HubFile("laion/CLIP-convnext_base_w_320-laion_aesthetic-s13B-b82K-augreg"),
            num_parameters=179_385_345,
            settings=BASE_CLIP,
        ),
        Release(
            "clip-convnext-large-d-320",
            "open_clip",
            "OpenCLIP large",
            None,
            "open_clip_model.safetensors",
            HubFile("laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup"),
            num_parameters=351_772_609,
            settings=LARGE_CLIP,
        ),
    )
}


def find_release(name: str) -> Release:
    """The release of this name. Raises ValueError, with the nearest name, if there is none."""
    if name in RELEASES:
        return RELEASES[name]
    near = nearest_name(name)
    hint = f"did you mean {near}?" if near else f"the names are {', '.join(RELEASES)}."
    raise ValueError(f"{name}: no released model has this name; {hint}")


def nearest_name(name: str) -> str | None:
    """The known name most like `name`; None if none is."""
    return next(iter(difflib.get_close_matches(name.lower(), [*RELEASES, *SHIPPED], n=1, cutoff=0.5)), None)


def home() -> Path:
    """Where models are kept: `MAFTPLUS_HOME`, else the folder `maftplus` beside the Hub's cache."""
    from huggingface_hub import constants

    given = os.environ.get(HOME_VARIABLE)
    return Path(given).expanduser() if given else Path(constants.HF_HUB_CACHE).parent / "maftplus"


def released_folder(name: str) -> Path:
    """Where the model of this name is kept, whether it is there or not."""
    return home() / name


def download_folder(name: str) -> Path:
    """Where the original of this name is kept while it is fetched, and afterwards if it was asked to stay."""
    return home() / DOWNLOADS / name


def is_there(name: str) -> bool:
    return (released_folder(name) / CONFIG_FILE).is_file()


def find_model(model: str) -> str:
    """
    What `from_pretrained` takes for `model`: the folder of a name that `maftplus get` knows, or of a shipped model;
    whatever else (a folder, `user/name`) stays as it is. A model's folder of that name comes first.

    Raises:
        ValueError: if it is the name of a released model that is not there yet, or a word like one.
    """
    if Path(model).name != model or (Path(model) / CONFIG_FILE).is_file():
        return model
    if model in SHIPPED:
        return str(SHIPPED[model])
    if model in RELEASES and is_there(model):
        return str(released_folder(model))
    if model in RELEASES:
        raise ValueError(f"{model}: this model is not here yet; `maftplus get {model}` fetches it.")
    near = nearest_name(model)
    if near is not None and not Path(model).exists():
        raise ValueError(f"{model}: there is no such model folder, and no model of this name; did you mean {near}?")
    return model


def may_be_on_hub(model: str) -> bool:
    """Whether `model` is a name like `user/name`, and no path; with a folder `user` here it is one."""
    is_path = Path(model).is_absolute() or model[:1] in (".", "~") or Path(model).is_dir()
    return not is_path and model.count("/") == 1 and not Path(model).parent.is_dir()


def name_of_model(model: str) -> str:
    """
    What `find_model` finds a model by again: the name of a shipped or fetched one, whose folder may be another
    elsewhere; the full path of any other folder; else (a name on the Hub) as it is.
    """
    if not Path(model).is_dir():
        return model
    known = {**SHIPPED, **{name: released_folder(name) for name in RELEASES}}
    names = [name for name, folder in known.items() if folder.resolve() == Path(model).resolve()]
    return names[0] if names else str(Path(model).resolve())


__all__ = [
    "RELEASES",
    "DriveFile",
    "HubFile",
    "Release",
    "download_folder",
    "find_model",
    "find_release",
    "home",
    "is_there",
    "may_be_on_hub",
    "name_of_model",
    "nearest_name",
    "released_folder",
]
