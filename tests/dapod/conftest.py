"""No test asserts a time: a busy machine would miss hypothesis' deadline for an example."""

from hypothesis import settings

settings.register_profile("dapod", deadline=None)
settings.load_profile("dapod")
