"""The options of `maftplus segment`, group by group: what each is called, takes and says in the help.

A command lists them by type (`labels: Labels = None`), so that its signature stays a table of contents.
"""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

WORDS, RESULTS, NETWORK, CLIPS = "Words", "Results", "Network", "Clips"  # panels of the help


class Task(str, Enum):
    panoptic = "panoptic"
    instance = "instance"
    semantic = "semantic"


class Style(str, Enum):
    fill = "fill"
    outline = "outline"
    side_by_side = "side-by-side"


class Precision(str, Enum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def _words(*names: str, help: str) -> typer.models.OptionInfo:
    return typer.Option(*names, help=help, rich_help_panel=WORDS)


def _results(*names: str, help: str, **limits: float) -> typer.models.OptionInfo:
    return typer.Option(*names, help=help, rich_help_panel=RESULTS, **limits)


def _network(*names: str, help: str, **limits: float) -> typer.models.OptionInfo:
    return typer.Option(*names, help=help, rich_help_panel=NETWORK, **limits)


def _clips(*names: str, help: str, **limits: float) -> typer.models.OptionInfo:
    return typer.Option(*names, help=help, rich_help_panel=CLIPS, **limits)


Pictures = Annotated[list[str], typer.Argument(help="Pictures, URLs of pictures, folders of pictures; clips.")]

LabelList = Annotated[
    list[str] | None,
    _words("--labels", "-l", help='A class, with synonyms: "cat, kitten". Repeat. Default: the stored words.'),
]
StuffList = Annotated[list[str] | None, _words(help="Which of the labels are stuff (grass, sky). Repeat.")]
LabelsFile = Annotated[
    Path | None, _words(help='Labels, a line each: "cat, kitten", "stuff: grass", "7: stuff: grass".')
]
VocabularyName = Annotated[
    str | None, _words("--vocabulary", help="Labels by name (`maftplus words` lists them) or from a file.")
]
DistractorList = Annotated[
    list[str] | None,
    _words("--distractors", help="A class that competes with the labels and is never reported. Repeat."),
]
DistractorVocabulary = Annotated[
    str | None, _words(help="Distractors from a vocabulary, by name, or from a file of labels.")
]

Masks = Annotated[
    Path | None,
    _results(help="Name these masks, propose none: a file, or a folder with a picture's each; docs/masks.md."),
]
Tile = Annotated[
    int | None, _results(min=1, help="Read large pictures in square parts of this many pixels; docs/tiles.md.")
]
TileOverlap = Annotated[int | None, _results(min=0, help="Pixels by which parts overlap. Default: a quarter of them.")]
TaskChoice = Annotated[Task, _results(help="What to find.")]
Threshold = Annotated[float | None, _results(min=0, max=1, help="Smallest score of a segment.")]
MinMargin = Annotated[
    float | None, _results(min=0, max=1, help="How clearly a segment's word must lead; see docs/use.md.")
]
Heatmaps = Annotated[bool, _results("--heatmaps", help="Also draw, word by word, how much it is believed in where.")]
StyleChoice = Annotated[Style, _results(help="What the overlay shows.")]
Coco = Annotated[Path | None, _results(help="Also write what was found in all pictures as one COCO JSON.")]
OutFolder = Annotated[Path, _results(help="Folder for the results.")]
Overwrite = Annotated[
    bool, _results("--overwrite", help="Replace files that stand where results go, whoever wrote them.")
]
Quiet = Annotated[bool, _results("--quiet", "-q", help="Print errors only.")]

Model = Annotated[
    str | None,
    _network(help='Model folder, or its name: one of `maftplus get`, of the Hub, or "shapes" (the synthetic world).'),
]
Device = Annotated[str | None, _network(help='"cpu", "cuda", ... Default: the fastest there is.')]
Dtype = Annotated[Precision, _network(help="Precision of the network. auto: bfloat16 where the machine computes it.")]
Every = Annotated[int, _clips(min=1, help="Take every so-manieth frame.")]
Start = Annotated[float, _clips(min=0, help="Begin after so many seconds.")]
End = Annotated[float | None, _clips(min=0, help="End before this second.")]
BatchSize = Annotated[int, _network(min=1, help="Pictures a step of the network.")]
