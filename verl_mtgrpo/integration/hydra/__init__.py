"""Extensions for Hydra and OmegaConf: the search path of our config groups, and resolvers."""
