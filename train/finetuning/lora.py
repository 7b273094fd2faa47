"""LoRA: small matrices beside the network's linear layers train, and nothing else but the void row.

    add_adapter(model, "all", rank=8)        # in place; the trainer then trains the adapter alone
    save_adapter(model, folder)              # PEFT's two files; the network's configuration and words beside them
    model = load_adapter(folder_or_name)     # an ordinary model: its base, the adapter merged into it, its words
    PeftModel.from_pretrained(base, folder)  # PEFT's own way, the void row included, without the words

Source: arXiv 2106.09685, section 4.1; PEFT (the extra `lora`) has the layers. What a preset names, modules decide.
"""

import copy
import functools
import hashlib
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils import find_adapter_config_file, logging

from maftplus.configuration_maftplus import MaftPlusConfig
from maftplus.conversion.registry import find_model, may_be_on_hub, name_of_model
from maftplus.layers_maftplus import MaftPlusAttention
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation, MaftPlusModel
from maftplus.segmenter_maftplus import MaftPlusDeformableAttention

logger = logging.get_logger(__name__)

ADAPTER = "default"  # PEFT's name of the only adapter
PREFIX = "base_model.model."  # of every tensor in PEFT's files
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
NETWORK_FILE = "adapter_network.json"  # not config.json: transformers would look for a whole model beside it
WORDS_FILE = "adapter_words.safetensors"
FINGERPRINT = "base_fingerprint"
VOID, TEXT = "model.void_embedding", "model.clip.text_model"
ALL = "all"
ATTENTION = (MaftPlusAttention, MaftPlusDeformableAttention)


# --- What a preset names ---


def _linears(prefix: str, module: nn.Module) -> list[str]:
    """Names of the linear layers in a module that is called `prefix`."""
    return [name for name, part in module.named_modules(prefix=prefix) if isinstance(part, nn.Linear)]


def _trunk(model: MaftPlusForUniversalSegmentation) -> list[str]:
    """ConvNeXt: the point-wise layers of every block. ViT: the attention of every layer, which is what MAFT trains."""
    encoder, prefix = model.model.clip.vision_model.encoder, "model.clip.vision_model.encoder"
    if model.config.clip_config.takes_masks_by_pooling:
        return _linears(prefix, encoder)
    return [
        name
        for index, layer in enumerate(encoder.layers)
        for name in _linears(f"{prefix}.layers.{index}.self_attn", layer.self_attn)
    ]


def _segmenter(model: MaftPlusForUniversalSegmentation) -> list[str]:
    """All attention of pixel decoder and mask decoder."""
    parts = model.model.segmenter.named_modules(prefix="model.segmenter") if model.config.has_segmenter else ()
    attention = [(name, part) for name, part in parts if isinstance(part, ATTENTION)]
    return [name for prefix, part in attention for name in _linears(prefix, part)]


def _segmenter_mlp(model: MaftPlusForUniversalSegmentation) -> list[str]:
    """The segmenter's other linear layers: feed-forward networks, mask and class embedders."""
    linears = _linears("model.segmenter", model.model.segmenter) if model.config.has_segmenter else ()
    attention = _segmenter(model)
    return [name for name in linears if name not in attention]


def _cdt(model: MaftPlusForUniversalSegmentation) -> list[str]:
    """Content-Dependent Transfer, attention and linear layer."""
    return _linears("model.cdt", model.model.cdt) if model.config.cdt_form != "off" else []


def _text(model: MaftPlusForUniversalSegmentation) -> list[str]:
    """Every layer of the text tower; the words are then encoded anew in each step."""
    return _linears(f"{TEXT}.encoder", model.model.clip.text_model.encoder)


PRESETS: dict[str, Callable[[MaftPlusForUniversalSegmentation], list[str]]] = {
    "trunk": _trunk,
    "segmenter": _segmenter,
    "segmenter-mlp": _segmenter_mlp,
    "cdt": _cdt,
    "text": _text,
}
PARTS_OF_ALL = ("trunk", "segmenter", "cdt")  # of which a model need not have every one


def match_modules(model: MaftPlusForUniversalSegmentation, presets: str = ALL) -> dict[str, list[str]]:
    """
    The linear layers that presets name.

    Args:
        presets: Names joined by `+`: "trunk", "segmenter" (its attention), "segmenter-mlp", "cdt", "text"; "all"
            stands for trunk, segmenter and cdt as far as the model has them.

    Returns:
        The names of the layers in `model`, for every preset.

    Raises:
        ValueError: for an unknown preset, or one that names nothing in this model.
    """
    wanted = [name.strip() for name in presets.split("+")]
    unknown = [name for name in wanted if name not in (ALL, *PRESETS)]
    if unknown:
        raise ValueError(f"`lora`: there is no preset {unknown[0]!r}; join {', '.join((ALL, *PRESETS))} by '+'.")
    named = [name for name in wanted if name != ALL]
    names = dict.fromkeys([*(PARTS_OF_ALL if ALL in wanted else ()), *named])
    matched = {name: sorted(PRESETS[name](model)) for name in names}
    empty = [name for name in named if not matched[name]]
    if empty or not any(matched.values()):
        raise ValueError(
            f"`lora`: {' and '.join(map(repr, empty)) or repr(presets)} names nothing in this model, which has "
            f"{', '.join(name for name in PRESETS if PRESETS[name](model)) or 'no layer that takes an adapter'}."
        )
    return {name: layers for name, layers in matched.items() if layers}


# --- An adapter in a model ---


def add_adapter(
    model: MaftPlusForUniversalSegmentation,
    presets: str = ALL,
    rank: int = 8,
    alpha: float | None = None,
    dropout: float = 0.0,
) -> None:
    """
    Put an adapter beside the linear layers that `presets` name (`match_modules`), in place; it changes nothing yet.

    The void row is trained with it where the model has a segmenter, whose losses reach it. Bare parameters (level
    embedding, layer scales, logit scales) stay as they are: PEFT cannot train them.

    Args:
        rank: Width of the matrices.
        alpha: The adapter is scaled by `alpha / rank`. Default: twice the rank.
        dropout: Of the adapter's input, in training.

    Raises:
        ValueError: as `match_modules`, for a rank below 1, or if the model has an adapter or is one merged.
        ModuleNotFoundError: without PEFT.
    """
    peft = _import_peft()
    if rank < 1:
        raise ValueError(f"`lora_rank` must be at least 1, got {rank}.")
    base = model.name_or_path
    if has_adapter(model) or (base and is_adapter(base)):
        raise ValueError("This model has an adapter already; `maftplus merge` makes an ordinary model of the two.")
    layers = [name for names in match_modules(model, presets).values() for name in names]
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=layers,
        modules_to_save=[VOID] if model.config.has_segmenter else None,
    )
    _inject(model, config)
    config.base_model_name_or_path = name_of_model(base) if base else None


def _inject(model: MaftPlusForUniversalSegmentation, config: Any) -> None:
    """As `model.add_adapter` of transformers, which from 5.24 on asks for a newer PEFT than this needs."""
    _import_peft().inject_adapter_in_model(config, model, ADAPTER)
    model._hf_peft_config_loaded = True  # transformers then saves the adapter alone


def has_adapter(model: nn.Module) -> bool:
    """Whether `model` holds an adapter that is not merged."""
    return hasattr(model, "peft_config")


def base_of_adapter(model: nn.Module) -> str | None:
    """The name of the model that the adapter in `model` belongs to; None for one without a name."""
    return model.peft_config[ADAPTER].base_model_name_or_path


def adapter_modules(model: nn.Module) -> dict[str, nn.Module]:
    """What an adapter added to `model` and trains, by name: the two matrices of every layer, the void row."""
    return {
        f"{name}.{part}": getattr(module, part)
        for name, module in model.named_modules()
        for part in getattr(module, "adapter_layer_names", ())  # PEFT's own list
        if isinstance(getattr(module, part), nn.Module)
    }


def adapted_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers that have an adapter."""
    return sorted(name for name, module in model.named_modules() if hasattr(module, "lora_A"))


def describe_adapter(model: nn.Module) -> str:
    """
    What has an adapter and how much of the model trains, for people.

    Layers whose names differ in numbers or in their last part share a line.
    """
    kinds: dict[str, list[str]] = {}
    for name in adapted_layers(model):
        parent, _, last = name.rpartition(".")
        kinds.setdefault(re.sub(r"\.\d+(?=\.|$)", ".*", parent), []).append(last)
    lines = [f"  {len(lasts):4d} x {parent}: {', '.join(sorted(set(lasts)))}" for parent, lasts in kinds.items()]
    trained, total = count_trained(model)
    void = ", the void row" if any(name.startswith(VOID) for name in adapter_modules(model)) else ""
    head = f"LoRA of rank {model.peft_config[ADAPTER].r} in {len(adapted_layers(model))} layers{void}:"
    return "\n".join([head, *lines, f"{trained:,} parameters train, {trained / total:.2%} of the model's {total:,}."])


def count_trained(model: nn.Module) -> tuple[int, int]:
    """Numbers that train, and numbers of the model without its adapter."""
    everything = list(model.parameters())
    added = sum(parameter.numel() for part in adapter_modules(model).values() for parameter in part.parameters())
    trained = sum(parameter.numel() for parameter in everything if parameter.requires_grad)
    return trained, sum(parameter.numel() for parameter in everything) - added


def merge_adapter(model: MaftPlusForUniversalSegmentation) -> MaftPlusForUniversalSegmentation:
    """Add the adapter to the weights, in place: an ordinary model again, which computes the same."""
    remove_adapter(model, do_merge=True)
    return model


def remove_adapter(model: nn.Module, do_merge: bool = False) -> None:
    """Take every adapter below `model` out, in place; what it learnt is lost unless `do_merge`."""
    for name, child in list(model.named_children()):
        if hasattr(child, "lora_A"):
            if do_merge:
                child.merge(safe_merge=True)
            setattr(model, name, child.get_base_layer())
        elif hasattr(child, "modules_to_save"):
            setattr(model, name, child.modules_to_save[ADAPTER] if do_merge else child.original_module)
        else:
            remove_adapter(child, do_merge)
    if has_adapter(model):
        del model.peft_config
        model._hf_peft_config_loaded = False


def adapts_text(model: nn.Module) -> bool:
    """Whether the text tower has an adapter, so that the words move while it trains."""
    return any(name.startswith(f"{TEXT}.") for name in adapter_modules(model))


def embed_words(model: MaftPlusForUniversalSegmentation, prompts: dict[str, Tensor]) -> dict[str, Tensor]:
    """`encode_vocabulary` with a gradient to the text tower, which it keeps from every other caller."""
    encode = inspect.unwrap(MaftPlusModel.encode_vocabulary)  # what `torch.no_grad` wraps
    return encode(model.model, **prompts)


# --- On disk ---


def save_adapter(model: MaftPlusForUniversalSegmentation, folder: str | Path) -> None:
    """
    Write the adapter alone: PEFT's `adapter_config.json` (with the base's name) and `adapter_model.safetensors` (with
    the void row), `adapter_network.json` (the network's configuration, words and stuff) and the words' embeddings.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{PREFIX}{name}": tensor for name, tensor in _adapter_state(model).items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt", FINGERPRINT: base_fingerprint(model)})
    config = copy.copy(model.peft_config[ADAPTER])
    config.inference_mode = True
    config.target_modules = adapted_layers(model)  # PEFT shortens the names that it was given
    config.save_pretrained(str(folder))
    model.config.to_json_file(str(folder / NETWORK_FILE))
    if model.vocabulary_embeds is not None:
        save_file({"vocabulary_embeds": model.vocabulary_embeds.contiguous().cpu()}, folder / WORDS_FILE)


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter."""
    return (Path(folder) / CONFIG_FILE).is_file()


@functools.cache
def fetch_adapter(model: str) -> str:
    """The folder of an adapter that `model` names on the Hub, which is fetched; whatever else stays as it is.

    Raises:
        OSError: if it is on the Hub and cannot be fetched.
    """
    try:
        found = find_adapter_config_file(model) if may_be_on_hub(model) else None
    except OSError:  # no such repository, which whoever loads the model says
        found = None
    return model if found is None else snapshot_download(model, ignore_patterns=["*/*"])


def base_of(folder: str | Path, base: str | None = None) -> str:
    """
    What `from_pretrained` takes for the base of an adapter: `base`, or the one that its folder names.

    Raises:
        ValueError: if it names none, or one that is not here.
    """
    if base is None:
        base = _read_json(Path(folder) / CONFIG_FILE).get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{folder}: the adapter does not name its base; give the base model's name or folder.")
    return find_model(base)


def load_adapter_weights(model: MaftPlusForUniversalSegmentation, folder: str | Path) -> None:
    """
    Fill the adapter in `model` with the one in `folder`.

    Raises:
        ValueError: if the folder holds no adapter, or one of other layers or ranks.
    """
    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no adapter ({WEIGHTS_FILE} is missing).")
    found = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(path).items()}
    expected = _adapter_state(model)
    wrong = sorted(found.keys() ^ expected.keys()) or [
        name for name, tensor in found.items() if tensor.shape != expected[name].shape
    ]
    if wrong:
        raise ValueError(
            f"{path} does not fit this model's adapter: {len(wrong)} tensors differ, such as {wrong[0]}. The base "
            "model and, in training, `lora` and `lora_rank` must be those that it was trained with."
        )
    with safe_open(path, "pt") as file:
        fingerprint = (file.metadata() or {}).get(FINGERPRINT)
    if fingerprint not in (None, base_fingerprint(model)):
        logger.warning("%s: these are not the weights that it was trained beside; has the base changed since?", folder)
    _import_peft().set_peft_model_state_dict(model, found, adapter_name=ADAPTER)


def base_fingerprint(model: nn.Module) -> str:
    """Tells the weights beside an adapter from others: a hash of the first row of every adapted layer."""
    rows = [model.get_submodule(name).get_base_layer().weight[0] for name in adapted_layers(model)]
    return hashlib.sha256(torch.cat(rows).detach().float().cpu().numpy().tobytes()).hexdigest()


def load_adapter(
    folder: str | Path, base: str | None = None, do_merge: bool = True, **config_fields: Any
) -> MaftPlusForUniversalSegmentation:
    """
    The model that an adapter makes of its base, with the adapter's words, in evaluation mode.

    Args:
        folder: What `save_adapter` wrote, or its name on the Hub.
        base: Name or folder of the base model. Default: the one that the adapter names.
        do_merge: False: keep the adapter beside the weights, to train it on.
        **config_fields: Fields of `MaftPlusConfig` in place of the adapter's.

    Raises:
        ValueError: if it is no adapter, its base is not here, or the two do not fit.
        OSError: if the base cannot be loaded.
        ModuleNotFoundError: without PEFT.
    """
    peft, folder = _import_peft(), Path(fetch_adapter(str(folder)))
    base = base_of(folder, base)
    config = MaftPlusConfig.from_dict({**_read_json(folder / NETWORK_FILE), **config_fields})
    words = config.vocabulary, config.stuff_ids, config.seen_ids
    config.store_vocabulary([], [], [])  # the base's own words, of another number, are left out with this
    model, info = MaftPlusForUniversalSegmentation.from_pretrained(base, config=config, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(f"{folder}: {base} is not its base, it lacks {sorted(info['missing_keys'])[0]}.")
    adapter = peft.LoraConfig.from_pretrained(str(folder))
    adapter.inference_mode = False
    named = adapter.base_model_name_or_path
    _inject(model, adapter)
    adapter.base_model_name_or_path = named
    load_adapter_weights(model, folder)
    if words[0]:
        model.config.store_vocabulary(*words)
        model.vocabulary_embeds = load_file(folder / WORDS_FILE)["vocabulary_embeds"].to(model.dtype)
    if do_merge:
        merge_adapter(model)
        model.name_or_path = str(folder)
    return model.eval()


def _adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapter's tensors by PEFT's names, without the adapter's own name; nothing is asked of the Hub."""
    state = _import_peft().get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    return {name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}


def _import_peft() -> ModuleType:
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('LoRA needs PEFT: pip install "maftplus[lora]"', name="peft") from error
    return peft


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path.parent}: this is no adapter of ours, {path.name} is missing.") from error
    except ValueError as error:
        raise ValueError(f"{path}: this is no JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object.")
    return content
