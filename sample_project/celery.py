"""The shop's Celery app; its settings are the ``CELERY_*`` ones of Django's settings."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "sample_project.settings")

app = Celery("sample_project")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
# Celery's current app is the thread's own, and every thread but this one asks for the default.
app.set_default()
