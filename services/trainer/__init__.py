"""trainer: DeepSpeed ranks that learn from the buffer's batches and publish the policy."""
