"""`maftplus convert`: a released checkpoint becomes a model folder."""

from pathlib import Path
from typing import Annotated

import typer

from maftplus.app.command import command


@command()
def convert(
    source: Annotated[Path, typer.Argument(help="A .pth, .pt, .bin or .safetensors file, or an OpenCLIP Hub folder.")],
    out: Annotated[Path, typer.Argument(help="The new model folder.")],
    task: Annotated[str | None, typer.Option(help='"semantic" or "panoptic". Default: by the class weights.')] = None,
    config: Annotated[Path | None, typer.Option(help="JSON with fields that replace the released rule.")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help='A folder, a Hub name, or bpe_simple_vocab_16e6.txt.gz; "none" leaves it out.')
    ] = None,
    proposer: Annotated[
        str | None, typer.Option(help="MAFT: a transformers model that proposes masks in place of its own network.")
    ] = None,
    teacher_out: Annotated[Path | None, typer.Option(help="New folder for the frozen CLIP of training.")] = None,
    training_classes: Annotated[
        Path | None, typer.Option(help="FC-CLIP: the classes seen in training, a line each, synonyms with commas.")
    ] = None,
    first_masked_layer: Annotated[
        int | None,
        typer.Option(min=0, help="MAFT: first layer of the ViT that reads masks. Default: 8; MAFT_Vitl.pt: try 16."),
    ] = None,
) -> None:
    """Turn a released checkpoint (MAFT+, MAFT, FC-CLIP, OpenCLIP) into a folder that `from_pretrained` loads."""
    from maftplus.conversion.convert import convert as convert_checkpoint
    from maftplus.vocabularies.files import load_vocabulary_file

    seen = training_classes and load_vocabulary_file(training_classes).prompts
    convert_checkpoint(
        source,
        out,
        task,
        config,
        tokenizer,
        proposer,
        teacher_out,
        training_classes=seen,
        show_progress=True,
        first_masked_layer=first_masked_layer,
    )
    typer.echo(f"{out}: ready for from_pretrained and the Hub")
