"""From a folder of labelled pictures to a fine-tuned model: forms of data, their survey, the training's presets."""
