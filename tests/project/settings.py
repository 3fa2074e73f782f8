"""Settings of the test project; servers come from the environment (see tests.servers.plugin)."""

import environ
from kombu import Exchange, Queue

env = environ.Env()

SECRET_KEY = "tests"
DEBUG = False
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.project.urls"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
STATIC_URL = "/static/"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "idempotency",
    "outbox",
    # Their models, for the tests of the documents, the shop, the demo's ledger and the guide.
    "sample_project.shop",
    "sample_project.demo",
    "sample_project.guide",
    "tests.project",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]

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

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

DATABASES = {"default": env.db("DATABASE_URL", default="postgres:///outbox")}
DATABASES["other"] = {**DATABASES["default"], "NAME": f"{DATABASES['default']['NAME']}_other"}
if "OTHER_DATABASE_URL" in env:
    DATABASES["other"] = env.db("OTHER_DATABASE_URL")

# Read by Django 6.1 and later; before, the test runner sets the backend.
MAILERS = {"default": {"BACKEND": "django.core.mail.backends.locmem.EmailBackend"}}

# Each test of the guide has its own.
GUIDE_GATEWAY_URL = env.str("GUIDE_GATEWAY_URL", default="http://127.0.0.1:1")
GUIDE_REDIS_URL = env.str("GUIDE_REDIS_URL", default="redis://127.0.0.1:1/0")

CELERY_BROKER_URL = env.str("CELERY_BROKER_URL", default="memory://")
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_REJECT_ON_WORKER_LOST = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 4
CELERY_DB_REUSE_MAX = env.int("TEST_DB_REUSE_MAX", default=100)
CELERY_ACCEPT_CONTENT = env.list("TEST_ACCEPT_CONTENT", default=["json"])
CELERY_TASK_QUEUES = [
    Queue("celery", Exchange("celery"), "celery"),
    Queue("topical", Exchange("topical", type="topic"), "topic.#"),
    Queue("ranked", Exchange("ranked"), "ranked", queue_arguments={"x-max-priority": 10}),
]


def broker_transport_options(url: str) -> dict[str, object]:
    """The options that a broker needs: confirms on AMQP, a quick sweep of unacked on Redis."""
    if url.startswith("amqp"):
        return {"confirm_publish": not env.bool("TEST_UNCONFIRMED", default=False)}
    if url.startswith("redis"):
        # The interval is in seconds; the throttle is "each n-th time".
        return {
            "visibility_timeout": env.int("TEST_VISIBILITY_TIMEOUT", default=5),
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
        }
    return {}


CELERY_BROKER_TRANSPORT_OPTIONS = broker_transport_options(CELERY_BROKER_URL)
