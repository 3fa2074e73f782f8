from django.apps import AppConfig


class DemoConfig(AppConfig):
    name = "sample_project.demo"
    label = "demo"

    def ready(self) -> None:
        from sample_project.demo import deliveries  # noqa: F401
