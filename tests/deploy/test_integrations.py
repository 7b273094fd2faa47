"""What docs/integrations.md promises of supervision, with the real package; empty results, too."""

import numpy as np
import pytest
import torch
from transformers.utils import ModelOutput

from maftplus.image_processing_maftplus import MaftPlusImageProcessorPil

supervision = pytest.importorskip("supervision")
NAMES = {0: "cat", 1: "grass"}
SIZE = (32, 48)


def outputs(is_empty: bool) -> ModelOutput:
    """A cat in the left half and grass in the right one, or void everywhere."""
    masks = torch.full((1, 2, 8, 12), -9.0)
    masks[0, 0, :, :6] = masks[0, 1, :, 6:] = 9.0
    classes = torch.full((1, 2, 3), -9.0)
    for query in range(2):
        classes[0, query, 2 if is_empty else query] = 9.0
    return ModelOutput(class_queries_logits=classes, masks_queries_logits=masks)


@pytest.mark.parametrize("is_empty", [False, True])
@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_supervision_reads_panoptic_and_instance_results(task, is_empty):
    post_process = getattr(MaftPlusImageProcessorPil(), f"post_process_{task}_segmentation")
    result = post_process(outputs(is_empty), target_sizes=[SIZE])[0]
    found = supervision.Detections.from_transformers(result, id2label=NAMES)
    assert len(found) == (0 if is_empty else 2)
    if not is_empty:
        assert sorted(found["class_name"]) == ["cat", "grass"]
        assert found.mask.shape == (2, *SIZE)
        assert found.mask.any(0).all()


def test_supervision_reads_a_semantic_map():
    labels = MaftPlusImageProcessorPil().post_process_semantic_segmentation(outputs(False), target_sizes=[SIZE])[0]
    found = supervision.Detections.from_transformers(labels, id2label=NAMES)
    assert list(found["class_name"]) == ["cat", "grass"]
    np.testing.assert_array_equal(found.mask[0], labels.numpy() == 0)


@pytest.mark.parametrize("is_empty", [False, True])
def test_supervision_takes_overlapping_instances_as_masks(is_empty):
    result = MaftPlusImageProcessorPil().post_process_instance_segmentation(
        outputs(is_empty), target_sizes=[SIZE], return_binary_maps=True
    )[0]
    masks = result["segmentation"].numpy().astype(bool)
    class_ids = np.array([info["label_id"] for info in result["segments_info"]], dtype=int)
    found = supervision.Detections(supervision.mask_to_xyxy(masks), masks, class_id=class_ids)
    assert len(found) == (0 if is_empty else 2)
