"""The bricks: parts a model is built from. They know tensors and kernels, no checkpoint names and no requests."""
