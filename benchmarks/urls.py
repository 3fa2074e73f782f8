"""The same view, one INSERT in a transaction, without a guard and with one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from django.contrib.auth.decorators import login_required
from django.db import transaction
from django.http import JsonResponse
from django.urls import path

from idempotency import idempotent_view
from tests.project.models import Effect

if TYPE_CHECKING:
    from django.http import HttpRequest, HttpResponse


def write(request: HttpRequest) -> HttpResponse:
    with transaction.atomic():
        effect = Effect.objects.create(label=json.loads(request.body)["label"])
    return JsonResponse({"effect": effect.pk}, status=201)


urlpatterns = [
    path("unguarded/", login_required(write)),
    path("guarded/", login_required(idempotent_view(write))),
]
