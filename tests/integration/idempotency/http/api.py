"""Guarded handlers of Django REST framework."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib.auth.models import User
from django.utils.decorators import method_decorator
from rest_framework import exceptions, serializers
from rest_framework.authentication import BaseAuthentication, SessionAuthentication
from rest_framework.decorators import (
    action,
    api_view,
    authentication_classes,
    permission_classes,
    throttle_classes,
)
from rest_framework.parsers import FileUploadParser, FormParser, JSONParser, MultiPartParser
from rest_framework.permissions import BasePermission, IsAuthenticated
from rest_framework.renderers import JSONRenderer
from rest_framework.response import Response
from rest_framework.throttling import BaseThrottle
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from idempotency import idempotent_view, mark_final
from tests.project.models import Effect

if TYPE_CHECKING:
    from rest_framework.request import Request


class TokenAuthentication(BaseAuthentication):
    """``Authorization: Token <username>``: a user whom no middleware has seen."""

    def authenticate(self, request: Request) -> tuple[User, str] | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Token":
            return None
        try:
            return User.objects.get(username=token, is_active=True), token
        except User.DoesNotExist:
            raise exceptions.AuthenticationFailed("No such token.") from None

    def authenticate_header(self, request: Request) -> str:
        return "Token"


class MayPay(BasePermission):
    def has_permission(self, request: Request, view: APIView) -> bool:
        return bool(request.user.has_perm("project.add_effect"))


class ReadsData(BasePermission):
    def has_permission(self, request: Request, view: APIView) -> bool:
        return "label" in request.data


class Throttle(BaseThrottle):
    allowed = True

    def allow_request(self, request: Request, view: APIView) -> bool:
        return type(self).allowed

    def wait(self) -> float:
        return 7


class Guarded(APIView):
    authentication_classes = [TokenAuthentication, SessionAuthentication]
    permission_classes = [IsAuthenticated]
    throttle_classes = [Throttle]
    renderer_classes = [JSONRenderer]
    parser_classes = [JSONParser, FormParser, MultiPartParser]


class EffectSerializer(serializers.Serializer):
    label = serializers.CharField(max_length=10)


def made(label: str) -> dict[str, Any]:
    return {"effect": Effect.objects.create(label=label).pk, "label": label}


class Pay(Guarded):
    """As the documentation shows it: on the handler, with an unrendered response."""

    permission_classes = [IsAuthenticated, MayPay]

    @idempotent_view
    def post(self, request: Request) -> Response:
        serializer = EffectSerializer(data=request.data)
        Effect.objects.create(label="before validation")
        serializer.is_valid(raise_exception=True)
        response = Response(made(serializer.validated_data["label"]), status=201)
        response.set_cookie("basket", "first")
        return response

    @idempotent_view
    def patch(self, request: Request) -> Response:
        return self.post(request)


@method_decorator(idempotent_view, name="post")
class Decorated(Guarded):
    def post(self, request: Request) -> Response:
        return Response(made(request.data["label"]), status=201)


class ReadBefore(Guarded):
    permission_classes = [ReadsData]

    @idempotent_view
    def post(self, request: Request) -> Response:
        return Response(made(request.data["label"]), status=201)


class ReadsFile(BasePermission):
    def has_permission(self, request: Request, view: APIView) -> bool:
        return "file" in request.data


class FileReadBefore(Guarded):
    permission_classes = [ReadsFile]
    parser_classes = [FileUploadParser]

    @idempotent_view
    def post(self, request: Request) -> Response:
        made("file")
        return Response(request.data["file"].read().decode(), status=201)


class Upload(Guarded):
    @idempotent_view
    def post(self, request: Request) -> Response:
        made("upload")
        return Response(
            {"title": request.data["title"], "file": request.FILES["file"].read().decode()}
        )

    @idempotent_view
    def patch(self, request: Request) -> Response:
        return self.post(request)


class Falsy(Guarded):
    values: dict[str, Any] = {
        "zero": 0,
        "false": False,
        "text": "",
        "list": [],
        "object": {},
        "none": None,
    }

    @idempotent_view
    def post(self, request: Request, name: str) -> Response:
        made(name)
        return Response(self.values[name])


class Refused(Guarded):
    @idempotent_view(store_statuses=(422,))
    def post(self, request: Request, status: int) -> Response:
        return Response(made("refused"), status=status)

    @idempotent_view
    def patch(self, request: Request, status: int) -> Response:
        return mark_final(Response(made("refused"), status=status))


class Enveloped(Guarded):
    """Wraps what its handlers return, and counts on a response with data."""

    def finalize_response(
        self, request: Request, response: Any, *args: Any, **kwargs: Any
    ) -> Response:
        response.data = {"data": response.data}
        finalized: Response = super().finalize_response(request, response, *args, **kwargs)
        return finalized

    @idempotent_view
    def post(self, request: Request) -> Response:
        return Response(made("enveloped"), status=201)


class Orders(ViewSet):
    authentication_classes = [TokenAuthentication, SessionAuthentication]
    permission_classes = [IsAuthenticated]
    renderer_classes = [JSONRenderer]

    @idempotent_view
    def create(self, request: Request) -> Response:
        return Response(made("create"), status=201)

    @action(detail=True, methods=["post"])
    @idempotent_view
    def ship(self, request: Request, pk: str) -> Response:
        return Response(made("ship"))

    @idempotent_view
    @action(detail=True, methods=["post"])
    def bill(self, request: Request, pk: str) -> Response:
        return Response(made("bill"))


@idempotent_view
@api_view(["POST", "GET"])
@authentication_classes([TokenAuthentication])
@permission_classes([IsAuthenticated, MayPay])
@throttle_classes([Throttle])
def above(request: Request) -> Response:
    return Response(made("above"), status=201)


@api_view(["POST", "GET"])
@authentication_classes([TokenAuthentication])
@permission_classes([IsAuthenticated, MayPay])
@throttle_classes([Throttle])
@idempotent_view
def below(request: Request) -> Response:
    return Response(made("below"), status=201)


@idempotent_view
@api_view(["POST"])
@authentication_classes([TokenAuthentication])
@permission_classes([IsAuthenticated])
@idempotent_view
def both(request: Request) -> Response:
    return Response(made("both"), status=201)
