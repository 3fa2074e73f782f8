from django.apps import AppConfig


class DemoConfig(AppConfig):
    name = "sample_project.demo"
    label = "demo"
