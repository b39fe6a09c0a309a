"""What Hydra and OmegaConf call: the search path of our config groups, and resolvers."""
