"""Whether exported graphs compute what the model computes: `python benchmarks/parity.py --models shapes base maft`.

For every model and runtime a batch of pictures a shape that the exporter never saw; the columns are those of the
card that `maftplus export` writes. `shapes` is the shipped model. `base` and `maft` (ViT-B) have full size and
random weights, made sensitive: no layer scale near zero, so that every layer matters (`sensitive_weights`). The exit
code is 1 beyond a tolerance. The large ones take about three minutes of one core each.
"""

import argparse
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch

from maftplus.configuration_maftplus import MaftPlusConfig, MaftPlusProposerConfig
from maftplus.deploy.export import PARITY_HEAD
from maftplus.deploy.exported import stand_in
from maftplus.deploy.graph import write_onnx
from maftplus.deploy.sessions import open_session
from maftplus.deploy.verify import compare
from maftplus.modeling_maftplus import MaftPlusForUniversalSegmentation

SHAPES_MODEL = Path(__file__).parents[1] / "models" / "shapes"
MAFT = {  # ViT-B/16 behind its own proposer, as released
    "clip_config": {
        "vision_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 224,
            "patch_size": 16,
        },
        "first_masked_layer": 8,
        "position_align_corners": True,
    },
    "proposer_config": {"model_type": MaftPlusProposerConfig.model_type},
    "cdt_form": "off",
    "clip_image_size": 480,
}
EMBEDDINGS = ("token_embedding", "position_embedding", "queries_features", "queries_embedder", "level_embed", "void")


def main() -> int:
    """Export, compare, print; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("shapes", "base", "maft"), default=["shapes"])
    parser.add_argument("--runtimes", nargs="+", choices=("onnx", "openvino"), default=["onnx", "openvino"])
    arguments = parser.parse_args()
    print("| model | runtime " + PARITY_HEAD.replace("|---|", "|---|---|---|", 1), end="")
    verdicts = [verdict for name in arguments.models for verdict in measure(name, arguments.runtimes)]
    return int(not all(verdicts))


def measure(name: str, runtimes: list[str]) -> list[bool]:
    """Print a model's rows; whether each is within its tolerance. OpenVINO reads the ONNX graph."""
    model = load(name)
    verdicts = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        write_onnx(model, path)
        for runtime in runtimes:
            exported = stand_in(model, runtime=runtime).eval()
            exported.model.session = open_session(runtime, path, torch.float32)
            for each in compare(model, exported):
                print(f"| {name} | {runtime} {each.row()}", flush=True)
                verdicts.append(each.is_within)
    return verdicts


def load(name: str) -> MaftPlusForUniversalSegmentation:
    if name == "shapes":
        return MaftPlusForUniversalSegmentation.from_pretrained(SHAPES_MODEL).eval()
    model = MaftPlusForUniversalSegmentation(MaftPlusConfig(**(MAFT if name == "maft" else {}))).eval()
    sensitive_weights(model)
    return model


@torch.no_grad()
def sensitive_weights(model: MaftPlusForUniversalSegmentation) -> None:
    """Every weight a function of its name and shape: unit variance is kept, scales are about 1, layer scales 1/2."""
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
            noise = torch.from_numpy(np.asarray(generator.standard_normal(tuple(value.shape), dtype=np.float32)))
            value.copy_(_weight(name, noise))


def _weight(name: str, noise: torch.Tensor) -> torch.Tensor:
    if name.endswith("sampling_offsets.bias") or any(part in name for part in EMBEDDINGS):
        return 0.5 * noise
    if name.endswith("logit_scale"):
        return np.log(1 / 0.07) + 0.1 * noise
    if name.endswith("running_var"):
        return 1 + 0.1 * noise.abs()
    if "layer_scale" in name:
        return 0.5 + 0.1 * noise
    if noise.ndim <= 1:
        return 0.1 * noise + (1 if name.endswith("weight") else 0)
    return noise / np.sqrt(noise[0].numel())


if __name__ == "__main__":
    sys.exit(main())
