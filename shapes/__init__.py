"""The small world of coloured shapes: scenes, the shipped model, the experiments, the demo."""
