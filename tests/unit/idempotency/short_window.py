"""Settings under which a duplicate may come when its key is forgotten."""

from tests.project.settings import *  # noqa: F403

IDEMPOTENCY_TTL = 60
CELERY_BROKER_URL = "memory://"
