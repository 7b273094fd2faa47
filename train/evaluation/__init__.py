"""Counting, figures and reports of semantic and panoptic evaluation."""
