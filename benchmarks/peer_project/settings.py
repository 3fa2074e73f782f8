"""Settings of the project in which one peer runs: the one that PEER names."""

import logging
import os
from importlib import import_module
from urllib.parse import unquote, urlsplit

at = urlsplit(os.environ["DATABASE_URL"])
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": at.hostname,
        "PORT": at.port,
        "USER": unquote(at.username or ""),
        "PASSWORD": unquote(at.password or ""),
        "NAME": at.path.removeprefix("/"),
        # Each of its batches closes a connection that may not be kept.
        "CONN_MAX_AGE": None,
    }
}
SECRET_KEY = "peers"  # noqa: S105 (nothing is signed)
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [os.environ["PEER"]]

CELERY_BROKER_URL = os.environ["CELERY_BROKER_URL"]
CELERY_TASK_IGNORE_RESULT = True
if CELERY_BROKER_URL.startswith("amqp"):
    CELERY_BROKER_TRANSPORT_OPTIONS = {"confirm_publish": True}

CELERY_OUTBOX_APP = "benchmarks.peer_project.celery.app"
# Nobody listens to its metrics here.
MONITORING_METRICS_ENABLED = False

# Its documents put Celery behind it so: a destination that calls the task.
RELIABLE_OUTBOX = {
    "BATCH_SIZE": 100,
    "DESTINATIONS": {"default": {"BACKEND": "benchmarks.peer_project.celery.CallTask"}},
}

if INSTALLED_APPS == ["django_celery_outbox"]:
    # A line for each batch is not what is measured.
    structlog = import_module("structlog")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
