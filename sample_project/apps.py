from django.apps import AppConfig


class SampleProjectConfig(AppConfig):
    name = "sample_project"

    def ready(self) -> None:
        # Celery's documentation imports the app in the project's __init__. Here the tests import
        # this package for its servers, and must keep their own app.
        from sample_project import celery  # noqa: F401
        from sample_project.demo import deliveries  # noqa: F401
