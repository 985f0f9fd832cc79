"""What is learnt: tensors and distributions, without Lightning, Hydra or files."""
