"""Settings of the sample project. What differs between machines comes from the environment.

Each ``env`` call below names a variable; without them the project talks to PostgreSQL and Redis on
this machine.
"""

from datetime import timedelta
from pathlib import Path

import environ
from django.core.management.utils import get_random_secret_key

env = environ.Env()
BASE_DIR = Path(__file__).resolve().parent

DEBUG = env.bool("DEBUG", default=False)
# Without one, each process makes its own and sessions end with it: never a secret in a repository.
SECRET_KEY = env.str("SECRET_KEY", default="") or get_random_secret_key()
ALLOWED_HOSTS = env.list("ALLOWED_HOSTS", default=["127.0.0.1", "localhost", "[::1]"])
CSRF_TRUSTED_ORIGINS = env.list("CSRF_TRUSTED_ORIGINS", default=[])

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "idempotency",
    "outbox",
    "sample_project",
    "sample_project.shop",
    "sample_project.demo",
    "sample_project.guide",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "sample_project.urls"
WSGI_APPLICATION = "sample_project.wsgi.application"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

DATABASES = {"default": env.db_url("DATABASE_URL", default="postgres://localhost/shop")}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]

USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en"
STATIC_URL = "static/"
STATIC_ROOT = BASE_DIR.parent / "static"

CELERY_BROKER_URL = env.str("CELERY_BROKER_URL", default="redis://127.0.0.1:6379/0")
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
# A worker acknowledges a message when its task has ended, and hands it back when it dies.
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_TASK_IGNORE_RESULT = True
# Celery closes the database connection around each task; this keeps it for so many tasks.
CELERY_DB_REUSE_MAX = 1000

if CELERY_BROKER_URL.startswith("amqp"):
    # What the broker has not confirmed counts as not published; a worker's retry is a publish too.
    CELERY_BROKER_TRANSPORT_OPTIONS: dict[str, object] = {"confirm_publish": True}
else:
    CELERY_BROKER_TRANSPORT_OPTIONS = {
        # An unacknowledged message comes back after this many seconds: more than a task takes.
        "visibility_timeout": env.int("BROKER_VISIBILITY_TIMEOUT", default=3600),
        # Look for such messages every 2 seconds; kombu's defaults look every 100.
        "unacked_restore_interval": 2,
        "unacked_restore_throttle": 1,
        # A worker that is killed while it looks keeps the others from looking for this long.
        "unacked_mutex_expire": 10,
    }

# A published message whose receipt has not come is published again after so many seconds, unless it
# may still be waiting in its queue: longer than a task usually takes.
OUTBOX_REDELIVER_AFTER = env.float("OUTBOX_REDELIVER_AFTER", default=300)

# A key is kept longer than the longest time after which a duplicate can still come: the broker's
# visibility timeout, a task's retries, a client's, and a person's who retries a message by hand.
IDEMPOTENCY_TTL = timedelta(days=7)
# An owner of leased work that gives no sign of life for so many seconds has lost it.
IDEMPOTENCY_LEASE = env.float("IDEMPOTENCY_LEASE", default=60)

# python -m sample_project.gateway, and a Redis or Valkey for the guide's lock.
GUIDE_GATEWAY_URL = env.str("GUIDE_GATEWAY_URL", default="http://127.0.0.1:8300")
GUIDE_REDIS_URL = env.str("GUIDE_REDIS_URL", default="redis://127.0.0.1:6379/1")

# The relay is a process of its own (manage.py outbox_relay). Where that is not wanted, Celery's
# beat can do its work, with this as the added delay.
CELERY_BEAT_SCHEDULE = {
    "outbox-relay": {"task": "outbox.relay", "schedule": 1.0},
    "outbox-purge": {"task": "outbox.purge", "schedule": 600.0},
    "idempotency-purge": {"task": "idempotency.purge", "schedule": 600.0},
}
