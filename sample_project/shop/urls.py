from django.urls import path

from sample_project.shop import views

app_name = "shop"
urlpatterns = [
    path("", views.NewOrder.as_view(), name="new"),
    path("orders/<int:pk>/", views.ShowOrder.as_view(), name="order"),
    path("api/orders/", views.create_order, name="create"),
]
