"""Pre-training of the shapes world's ViT: words and dense features from the ConvNeXt CLIP of the same captions.

    python shapes/pretrain.py shapes/recipes/shapes_clip_vit.yaml --teacher runs/shapes_clip --out runs/shapes_clip_vit

Captions alone taught a small ViT colours and stuff, no shapes, in the steps that are affordable here (`LOG.md`). So it
keeps the teacher's text tower, its layers imitate the maps of the teacher's, its patches the teacher's opinion on the
caption's phrases; the class token, which mask-aware attention reads, is contrasted with the phrases of whole pictures.
No masks, no classes of objects. Heads begin by looking at one neighbour each, as a convolution would.

Shapes: B images, L patches, U phrases of a batch, C channels of the tower, D joint space.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTokenizer

from maftplus.clip_maftplus import MaftPlusCLIPModel
from maftplus.configuration_maftplus import MaftPlusCLIPConfig
from maftplus.towers_maftplus import VISIBLE_FROM

PERIODS = (4.0, 7.0, 12.0, 21.0)  # of the position waves, in patches
NUM_WAVES = 4 * len(PERIODS)  # sine and cosine, rows and columns: as many channels as a head has
NEIGHBOURS = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0)]


def build_vit_clip(config: dict, teacher: MaftPlusCLIPModel) -> MaftPlusCLIPModel:
    """A ViT of the recipe's sizes beside the teacher's text tower, which stays as it is."""
    shared = {"projection_dim": teacher.config.projection_dim, "text_config": teacher.config.text_config.to_dict()}
    model = MaftPlusCLIPModel(MaftPlusCLIPConfig(**config, **shared))
    for name in ("text_model", "text_projection"):
        getattr(model, name).load_state_dict(getattr(teacher, name).state_dict())
        getattr(model, name).requires_grad_(False)
    model.logit_scale.data.copy_(teacher.logit_scale)
    model.logit_scale.requires_grad_(False)
    prepare_tower(model.vision_model)
    return model


def prepare_tower(tower: nn.Module) -> None:
    """What every ViT here begins with: `look_at_neighbours`, and the attention that trains fastest."""
    look_at_neighbours(tower)
    tower.set_attn_implementation("eager")  # on a CPU twice as fast as the fused backward pass


@torch.no_grad()
def look_at_neighbours(tower: nn.Module, amplitude: float = 0.4, sharpness: float = 2.2) -> None:
    """
    Lets head i of every layer begin with the patch at `NEIGHBOURS[i]`: positions are waves in channels of their own,
    keys read them, queries read them turned by the offset. Raises ValueError for other than 8 heads of 16 channels.
    """
    width, heads = tower.config.hidden_size, tower.config.num_attention_heads
    if heads != len(NEIGHBOURS) or width != heads * NUM_WAVES:
        raise ValueError(f"A ViT here has 8 heads of 16 channels; got `hidden_size` {width} and {heads} heads.")
    table, side = tower.embeddings.position_embedding.weight, math.isqrt(tower.embeddings.num_patches)
    speeds = 2 * math.pi / torch.tensor(PERIODS)
    angles = torch.arange(side)[:, None] * speeds
    waves = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)  # (side, waves / 2)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    table[1:, :NUM_WAVES] = amplitude * torch.cat([rows, columns], dim=2).flatten(0, 1)
    for other in (tower.embeddings.patch_embedding.weight[:NUM_WAVES], table[0, :NUM_WAVES]):
        other.zero_()
    for layer in tower.encoder.layers:
        queries, keys = layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight
        for weight in (queries, keys):
            weight *= 0.3
        for head, (down, right) in enumerate(NEIGHBOURS):
            turn = torch.block_diag(*(_rotation(speed * step) for step in (down, right) for speed in speeds))
            queries[head * NUM_WAVES : (head + 1) * NUM_WAVES, :NUM_WAVES] = sharpness * turn
            keys[head * NUM_WAVES : (head + 1) * NUM_WAVES, :NUM_WAVES] = sharpness * torch.eye(NUM_WAVES)


def _rotation(angle: Tensor) -> Tensor:
    """Takes (sin a, cos a) to (sin, cos) of a + `angle`."""
    return torch.tensor([[angle.cos(), angle.sin()], [-angle.sin(), angle.cos()]])


def hidden_states(tower: nn.Module, pixel_values: Tensor) -> list[Tensor]:
    """
    What leaves each layer of a ViT, class token first, (B, 1 + L, C) each.

    A picture smaller than the position table takes a random window of it: resized positions would put neighbouring
    patches further apart than they are in whole scenes, and what small scenes taught would be lost on them.
    """
    embeddings, table = tower.embeddings, tower.embeddings.position_embedding.weight
    patches = embeddings.patch_embedding(pixel_values)  # (B, C, h, w)
    (height, width), side = patches.shape[-2:], math.isqrt(embeddings.num_patches)
    top, left = (int(torch.randint(side - length + 1, ())) for length in (height, width))
    positions = table[1:].view(side, side, -1)[top : top + height, left : left + width].flatten(0, 1)
    first = (embeddings.class_embedding + table[0]).expand(len(patches), 1, -1)
    states = [tower.pre_layrnorm(torch.cat([first, patches.flatten(2).transpose(1, 2) + positions], dim=1))]
    for layer in tower.encoder.layers:
        states.append(layer(states[-1], None))
    return states[1:]


@torch.no_grad()
def teacher_maps(teacher: MaftPlusCLIPModel, pixel_values: Tensor) -> list[Tensor]:
    """
    What leaves the second but last stage of a ConvNeXt, and each block of the last, as patches at the last stride.

    Returns: (B, L, 4 C') and then (B, L, C) each.
    """
    *stages, last = teacher.vision_model.encoder.stages
    states = teacher.vision_model.embeddings(pixel_values)
    for stage in stages:
        states = stage(states)
    maps = [F.pixel_unshuffle(states, 2)]
    for layer in last.downsampling_layer:
        states = layer(states)
    for layer in last.layers:
        states = layer(states)
        maps.append(states)
    return [each.flatten(2).transpose(1, 2).float() for each in maps]


class Imitation(nn.Module):
    """A ViT CLIP and the linear maps (not saved) by which its layers but the last imitate the teacher's maps."""

    def __init__(self, model: MaftPlusCLIPModel, teacher: MaftPlusCLIPModel):
        super().__init__()
        self.model, width = model, model.config.vision_config.hidden_size
        *_, before, last = teacher.config.vision_config.hidden_sizes
        depth = model.config.vision_config.num_hidden_layers - 1
        self.hints = nn.ModuleList(nn.Linear(width, 4 * before if i == 0 else last) for i in range(depth))

    def loss(self, states: list[Tensor], maps: list[Tensor]) -> Tensor:
        """Mean square distance to the standardised maps."""
        pairs = zip(self.hints, states, maps)
        losses = [F.mse_loss(hint(s[:, 1:].float()), F.layer_norm(m, m.shape[-1:])) for hint, s, m in pairs]
        return sum(losses) / len(losses)


def opinion_loss(patches: Tensor, teacher: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Cross-entropy of what patches (B, L, D) and the teacher's locations (B, L, D) say of phrases (U, D)."""
    ours, theirs = (F.normalize(x, dim=-1) @ text.T * scale for x in (patches, teacher))
    return -(theirs.softmax(-1) * ours.log_softmax(-1)).sum(-1).mean()


def pool_patches(model: MaftPlusCLIPModel, vision, masks: Tensor) -> Tensor:
    """
    A ViT without mask-aware attention: its patches' embeddings averaged under masks; arguments as `embed_masks`.

    Returns: (B, Q, D), as sums, whose length does not matter; zeros under a mask without a patch.
    """
    inside = F.interpolate(masks.float(), size=vision.grid_size, mode="bilinear") >= VISIBLE_FROM
    return inside.flatten(2).float() @ model.embed_dense(vision).flatten(2).transpose(1, 2)


def load_teacher(folder: Path) -> tuple[MaftPlusCLIPModel, CLIPTokenizer]:
    """A frozen ConvNeXt CLIP and its tokenizer. Raises ValueError for a ViT."""
    teacher = MaftPlusCLIPModel.from_pretrained(folder).eval().requires_grad_(False)
    if not teacher.config.takes_masks_by_pooling:
        raise ValueError(f"`teacher` must be a CLIP with a ConvNeXt, {folder} holds a ViT.")
    return teacher, CLIPTokenizer.from_pretrained(folder)
