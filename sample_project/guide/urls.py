from django.urls import path

from sample_project.guide import views

app_name = "guide"
urlpatterns = [path("payments/", views.create_payment, name="pay")]
