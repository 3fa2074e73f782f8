from celery import Celery

app = Celery("tests.project")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
# Without it every thread but the one that imported this has another default app.
app.set_default()
