"""reward: scores answers in killable worker processes; a failure is an outcome, not a 0."""
