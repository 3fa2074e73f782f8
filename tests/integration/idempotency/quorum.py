"""Settings with quorum queues, where Celery turns a countdown into RabbitMQ's delayed delivery."""

from tests.project.settings import *  # noqa: F403

CELERY_TASK_QUEUES = []  # but for the default one
CELERY_TASK_DEFAULT_QUEUE_TYPE = "quorum"
CELERY_TASK_DEFAULT_EXCHANGE_TYPE = "topic"
# A quorum queue knows no global prefetch count.
CELERY_WORKER_DETECT_QUORUM_QUEUES = True
