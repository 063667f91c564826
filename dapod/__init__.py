"""dapod: DAPO reinforcement learning for language models, made of services that scale alone."""
