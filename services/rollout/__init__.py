"""rollout: leases prompts, lets vLLM answer them, has them scored and submits the groups."""
