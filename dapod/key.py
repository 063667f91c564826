"""The key: what a data set says is the answer, and a verifier judges by.

The data layer refuses a row whose key is too long before a run starts; the reward service, which
would refuse it at every try, asks by the same number.
"""

MAX_KEY_CHARACTERS = 100_000
"""A reasoning-gym entry as JSON may be 14,000."""
