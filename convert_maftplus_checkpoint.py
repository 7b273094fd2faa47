"""Released checkpoints and CLIP weights -> folders that `from_pretrained` loads.

Sources: released MAFT+ (arXiv 2408.00744), FC-CLIP (arXiv 2308.02487), MAFT (arXiv 2310.00240), OpenCLIP.
The names live in `rename_maftplus.py`.
"""

from .rename_maftplus import (
    convert_maft_model_state,
    convert_maft_state,
    convert_maftplus_state,
    convert_open_clip_state,
    convert_openai_clip_state,
    convert_state,
    renamed,
    teacher_state,
)

__all__ = [
    "convert_maft_model_state",
    "convert_maft_state",
    "convert_maftplus_state",
    "convert_open_clip_state",
    "convert_openai_clip_state",
    "convert_state",
    "renamed",
    "teacher_state",
]
