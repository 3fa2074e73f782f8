from django.urls import path

from sample_project.shop import views

app_name = "shop"
urlpatterns = [
    path("", views.new_order, name="new"),
    path("orders/<int:pk>/", views.show_order, name="order"),
    path("api/orders/", views.create_order, name="create"),
]
