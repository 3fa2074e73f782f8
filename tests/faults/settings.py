"""The test project, with fault points and planted bugs that the environment switches on."""

from tests.project.settings import *  # noqa: F403
from tests.project.settings import CELERY_BROKER_TRANSPORT_OPTIONS, CELERY_BROKER_URL, env
from tests.project.settings import INSTALLED_APPS as PROJECT_APPS

INSTALLED_APPS = [*PROJECT_APPS, "tests.faults"]

OUTBOX_POLL_INTERVAL = env.float("OUTBOX_POLL_INTERVAL", default=0.025)
OUTBOX_CLAIM_TIMEOUT = env.float("OUTBOX_CLAIM_TIMEOUT", default=30.0)
OUTBOX_REDELIVER_AFTER = env.float("OUTBOX_REDELIVER_AFTER", default=300.0)

if CELERY_BROKER_URL.startswith("redis"):
    # A worker that is killed while it looks for unacked messages keeps the others from looking.
    CELERY_BROKER_TRANSPORT_OPTIONS["unacked_mutex_expire"] = 5
