"""Settings under which a worker that dies loses its guarded tasks."""

from tests.project.settings import *  # noqa: F403

CELERY_TASK_ACKS_LATE = False
