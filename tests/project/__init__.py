"""The Django project that the tests run in."""

from tests.project.celery import app

__all__ = ["app"]
