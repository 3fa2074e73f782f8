from django.apps import AppConfig


class GuideConfig(AppConfig):
    name = "sample_project.guide"
    label = "guide"

    def ready(self) -> None:
        from sample_project.guide import duplicates  # noqa: F401
