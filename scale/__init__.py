"""Millions of pictures: the Ray Data job and its results.

maftplus batch photos/ results/ --labels "cat, kitten" --labels grass --model FOLDER
rows = maftplus.scale.read_results("results/")
"""

from maftplus.scale.results import read_results

__all__ = ["read_results"]
