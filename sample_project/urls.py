from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("guide/", include("sample_project.guide.urls")),
    path("", include("sample_project.shop.urls")),
]
