"""How tensors lie in memory: arrays, panels of weights, operands, the model's tensors."""
