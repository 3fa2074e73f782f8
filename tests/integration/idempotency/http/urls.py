from django.urls import include, path
from rest_framework.routers import SimpleRouter

from tests.integration.idempotency.http import api, views

router = SimpleRouter()
router.register("orders", api.Orders, basename="orders")

PLAIN = (
    "pay",
    "optional",
    "anonymous_ignored",
    "anonymous_known",
    "by_client",
    "fail",
    "nothing",
    "redirect",
    "empty",
    "stream",
    "file",
    "oversize",
    "secret",
    "encoded",
    "template",
    "upload",
    "enqueue",
    "slow",
    "patient",
    "elsewhere",
    "outage",
    "own_transaction_spoiled",
    "then_fails",
    "pay_async",
    "refuse_async",
    "exempt",
    "exempt_below",
)

urlpatterns = [
    *(path(f"{name}/", getattr(views, name)) for name in PLAIN),
    path("pay/<str:label>/", views.pay),
    path("pay-too/<str:label>/", views.pay),
    path("fail-within/<str:name>/", views.fail_within),
    path("status/<int:status>/", views.status),
    path("final/<int:status>/", views.final),
    path("decorated/", views.Decorated.as_view()),
    path("direct/", views.Direct.as_view()),
    path("async/", views.Async.as_view()),
    path("async-decorated/", views.AsyncDecorated.as_view()),
    path("api/pay/", api.Pay.as_view()),
    path("api/decorated/", api.Decorated.as_view()),
    path("api/file-read-before/", api.FileReadBefore.as_view()),
    path("api/read-before/", api.ReadBefore.as_view()),
    path("api/upload/", api.Upload.as_view()),
    path("api/falsy/<str:name>/", api.Falsy.as_view()),
    path("api/refused/<int:status>/", api.Refused.as_view()),
    path("api/enveloped/", api.Enveloped.as_view()),
    path("api/above/", api.above),
    path("api/below/", api.below),
    path("api/both/", api.both),
    path("api/", include(router.urls)),
]
