"""From a checkpoint's tensors to the packed arrays that programs read."""
