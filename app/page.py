"""The web page: a picture or a clip, words, and what is found of them. Gradio 6 (the extra [page]).

    maftplus page --model shapes --port 7860

The page keeps nothing: what it holds of a visitor ends with the visit, files go after an hour, no address is fetched
for anybody, and no event is offered as an API. `page_answers.py` has what it answers.
"""

import contextlib
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image
from transformers.utils import logging

from maftplus.app.models import load_pipeline, resolve_model
from maftplus.app.page_answers import OWN_WORDS, TABLE_COLUMNS, Visit, read_options, words_of
from maftplus.pipeline_maftplus import SUBTASKS, MaftPlusSegmentationPipeline
from maftplus.reading_maftplus import is_url, read_picture
from maftplus.vocabularies.files import available_vocabularies

logger = logging.get_logger(__name__)

MAX_FILE_SIZE = "30mb"
MAX_SECONDS = 60.0  # of a clip
FILE_LIFE = STATE_LIFE = 3600  # seconds
MAX_VISITORS = 200  # whose pictures are kept at a time
EXAMPLES = "example_*.png"  # in the model's folder
FAILED = "This did not work, and not for anything you did; the server's log says why."
WORDS_INFO = 'Type a word and press Enter. Synonyms after commas: "cat, kitten". Ground and sky: "stuff: grass".'
CSS = """
.words .wrap-inner, .words .wrap {max-height: 15rem; overflow-y: auto}
#annotated .mask {opacity: 0.65}
footer {display: none !important}
"""
TRACK_COLUMNS = ("track", "word", "first frame", "last frame", "frames")


class Page:
    """
    The page of one model.

    Args:
        pipe: Answers all visitors, one at a time.
        examples: Pictures to try.
    """

    def __init__(self, pipe: MaftPlusSegmentationPipeline, examples: list[Path] | None = None):
        self.pipe, self.examples = pipe, examples or []

    def build(self) -> gr.Blocks:
        """The page, ready to be launched."""
        with gr.Blocks(title="maftplus", analytics_enabled=False, delete_cache=(FILE_LIFE, FILE_LIFE)) as page:
            gr.Markdown("# Segment with your own words")
            with gr.Row():
                with gr.Column(scale=2, min_width=300):
                    question = self._words() + self._numbers()
                with gr.Column(scale=3, min_width=300):
                    with gr.Tab("Picture"):
                        self._picture_tab(question)
                    with gr.Tab("Clip"):
                        self._clip_tab(question)
        return page

    # --- Layout ---

    def _words(self) -> list[gr.components.Component]:
        has_words = self.pipe.model.config.vocabulary is not None
        words = _tags("Words", WORDS_INFO + (" None: the model's own." if has_words else ""), "words")
        choices = [OWN_WORDS] * has_words + available_vocabularies()
        vocabulary = gr.Dropdown(choices, value=None, label="Start from a vocabulary", elem_id="vocabulary")
        _on(vocabulary.input, self.fill, [vocabulary], [words])
        return [words]

    def _numbers(self) -> list[gr.components.Component]:
        task = gr.Radio(list(SUBTASKS), value=SUBTASKS[0], label="Task", elem_id="task")
        with gr.Accordion("More", open=False):
            info = "Words that compete and are never reported."
            distractors = _tags("Distractors", info, "distractors")
            threshold = _share("Smallest score", "Empty: 0.2")
            min_margin = _share("Least lead over the next word", "Empty: 0, with distractors 0.6")
        return [distractors, task, threshold, min_margin]

    def _picture_tab(self, question: list[gr.components.Component]) -> None:
        visit = gr.State(None, time_to_live=STATE_LIFE)
        sources = ["upload", "webcam", "clipboard"]
        picture = gr.Image(sources=sources, label="Picture", elem_id="picture", height=260, format="png")
        picture.preprocess = read_upload
        refuse_addresses(picture)
        if self.examples:
            samples = [[str(path)] for path in self.examples]
            examples = gr.Dataset(components=[gr.Image(render=False)], samples=samples, label="Examples", type="index")
            _on(examples.click, self.example, [examples], [picture])
        button = gr.Button("Segment", variant="primary", elem_id="segment")
        annotated = gr.AnnotatedImage(label="Segments: hover for word and score", elem_id="annotated", format="png")
        table = gr.Dataframe(headers=list(TABLE_COLUMNS), interactive=False, label="Segments", elem_id="table")
        word = gr.Dropdown([], label="Heat map of", elem_id="heat-word")
        heat = gr.Image(label="How much the word is believed in", interactive=False, elem_id="heat")
        files = gr.File(label="Download", interactive=False, file_count="multiple", elem_id="files")
        outputs = [visit, annotated, table, word, heat, files]
        _on(button.click, self.segment, [visit, picture, *question], outputs)
        _on(word.input, self.heat_map, [visit, word], [heat])

    def _clip_tab(self, question: list[gr.components.Component]) -> None:
        clip = gr.Video(
            sources=["upload"], label=f"Clip, its first {MAX_SECONDS:.0f} seconds", elem_id="clip", height=260
        )
        refuse_addresses(clip)
        every = gr.Number(1, minimum=1, precision=0, label="Take every so-manieth frame")
        button = gr.Button("Segment the clip", variant="primary", elem_id="segment-clip")
        overlay = gr.Video(label="Segments with lasting numbers", interactive=False, elem_id="overlay")
        table = gr.Dataframe(headers=list(TRACK_COLUMNS), interactive=False, label="Tracks", elem_id="tracks")
        files = gr.File(label="Download", interactive=False, file_count="multiple")
        _on(button.click, self.segment_clip, [clip, every, *question], [overlay, table, files])

    # --- Answers ---

    def example(self, index: int) -> Image.Image:
        """One of the examples. `gr.Examples` would make the component anew, without what we put on it."""
        return read_picture(self.examples[index])

    def fill(self, vocabulary: str | None) -> list[str]:
        """The words of a vocabulary."""
        with told():
            return words_of(self.pipe, vocabulary) if vocabulary else []

    def segment(self, visit: Visit | None, picture: Image.Image | None, *question: Any) -> Iterator[tuple]:
        """One answer. Its files are gone when it has been sent: Gradio serves copies, which `delete_cache` removes."""
        visit = visit or Visit()
        with told(), tempfile.TemporaryDirectory() as folder:
            if picture is None:
                raise ValueError("There is no picture yet: drop one, take one or choose an example.")
            answer = visit.ask(self.pipe, picture, read_options(*question))
            shown, masks, colours = answer.annotations()
            if not masks:
                gr.Warning("No segment found: try other words, or a smaller least score.")
            drawing = gr.AnnotatedImage(value=(shown, masks), color_map=colours)
            words = gr.Dropdown(answer.names, value=None)
            yield visit, drawing, answer.rows(), words, None, answer.write(Path(folder))

    def heat_map(self, visit: Visit | None, word: str | None) -> Image.Image | None:
        """Of one word of the visitor's last answer."""
        with told():
            return (visit or Visit()).heat_map(self.pipe, word) if word else None

    def segment_clip(
        self,
        clip: str | None,
        every: float,
        *question: Any,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> Iterator[tuple]:
        """A clip's overlay, table and files."""
        from maftplus.app.video import segment_video

        with told(clip), tempfile.TemporaryDirectory() as folder:
            if clip is None:
                raise ValueError("There is no clip yet: drop one.")
            result = segment_video(
                clip,
                Path(folder) / "clip",
                self.pipe,
                every=int(every),
                end=MAX_SECONDS,
                progress=lambda frame: progress(min(1.0, frame.time / MAX_SECONDS), desc=f"{frame.time:.1f} s"),
                **read_options(*question),
            )
            if result.error:
                gr.Warning(_without_folder(result.error, clip))
            rows = [[one.id, one.word, one.first_frame, one.last_frame, one.num_frames] for one in result.summaries]
            yield str(result.overlay), rows, [str(result.overlay), str(result.tracks)]


def serve(
    model: str | None, port: int | None = None, queue_size: int = 20, device: str | None = None, dtype: str = "auto"
) -> None:
    """
    Load a model and serve its page until it is stopped.

    Args:
        model: Folder or name, see `resolve_model`.
        port: Default: the first free one from 7860.
        queue_size: Visitors that may wait for their turn; further ones are told so.

    Raises:
        ValueError: for what is no model.
        OSError: if the port is taken.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nobody is told that this page exists
    folder = resolve_model(model)
    page = Page(load_pipeline(folder, device, dtype), sorted(Path(folder).glob(EXAMPLES))).build()
    page.queue(max_size=queue_size).launch(
        server_port=port,
        share=False,
        max_file_size=MAX_FILE_SIZE,
        state_session_capacity=MAX_VISITORS,
        footer_links=[],
        ssr_mode=False,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # no fonts of strangers
        css=CSS,
    )


@contextlib.contextmanager
def told(path: str | None = None) -> Iterator[None]:
    """Errors become messages on the page, in which an uploaded file has its name and not its place on the server."""
    try:
        yield
    except gr.Error:
        raise
    except (ValueError, OSError) as error:
        raise gr.Error(_without_folder(str(error), path), print_exception=False) from error
    except Exception as error:
        logger.exception("The page could not answer")
        raise gr.Error(FAILED, print_exception=False) from error


def read_upload(payload: Any) -> Image.Image | None:
    """An uploaded picture, in place of Gradio's own decoder: the pixels that every other command sees."""
    if payload is None or payload.path is None:
        return None
    with told(payload.path):
        return read_picture(payload.path)


def refuse_addresses(component: gr.components.Component) -> None:
    """Gradio would fetch a file that a request names by its address: a server must not, for strangers."""
    component.async_move_resource_to_block_cache = _only_files(component.async_move_resource_to_block_cache)


def _only_files(move: Callable[[Any], Awaitable[str | None]]) -> Callable[[Any], Awaitable[str | None]]:
    async def guarded(path: Any) -> str | None:
        if path is not None and is_url(str(path)):
            raise gr.Error("This page takes files, no addresses.", print_exception=False)
        return await move(path)

    return guarded


def _tags(label: str, info: str, elem_id: str) -> gr.Dropdown:
    return gr.Dropdown(
        [],
        value=[],
        multiselect=True,
        allow_custom_value=True,
        label=label,
        info=info,
        elem_id=elem_id,
        elem_classes=["words"],
    )


def _share(label: str, info: str) -> gr.Number:
    return gr.Number(None, minimum=0, maximum=1, step=0.05, label=label, info=info)


def _on(event: Callable, answer: Callable, inputs: list, outputs: list) -> None:
    """One queue for all events, as there is one network."""
    event(answer, inputs, outputs, api_visibility="private", concurrency_id="network", concurrency_limit=1)


def _without_folder(message: str, path: str | None) -> str:
    return message.replace(path, Path(path).name) if path else message


__all__ = ["Page", "read_upload", "refuse_addresses", "serve"]
