"""verl's seam for training: trainer classes, the replay buffer, dumps and checkpoints."""
