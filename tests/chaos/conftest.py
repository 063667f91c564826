"""What the chaos tests share with the end-to-end tests."""

from tests.e2e.conftest import model

__all__ = ["model"]
