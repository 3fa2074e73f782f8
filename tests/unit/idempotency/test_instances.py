"""Results that are instances: they come back equal in value and type, and run nothing."""

from __future__ import annotations

import math
import sys
from dataclasses import InitVar, dataclass, field, make_dataclass
from datetime import date
from decimal import Decimal
from enum import Enum, Flag, IntEnum
from functools import cached_property
from typing import Any, Generic, TypeVar
from uuid import UUID, uuid4

import pytest
from django.db.models import TextChoices
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, RootModel

from idempotency.exceptions import ImproperlyUsed, ResultUnavailable
from idempotency.instances import put_together
from idempotency.results import dumps, loads


class Level(IntEnum):
    HIGH = 3


class Color(Enum):
    RED = "red"
    UNIQUE = UUID(int=1)


class Access(Flag):
    READ = 1
    WRITE = 2


@dataclass
class Money:
    amount: Decimal
    currency: str = "CHF"


@dataclass(frozen=True, slots=True)
class Receipt:
    id: UUID
    lines: tuple[Money, ...]
    made: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        made.append(self)


class Order:
    class Status(TextChoices):
        PAID = "paid"


@dataclass(eq=False)
class Incomparable:
    at: int


@dataclass
class Container(list[int]):
    at: int


class Charge(BaseModel):
    amount: Decimal
    due: date | None = None
    lines: list[Money] = []
    inner: Charge | None = None


class ChargeWithField(Charge):
    more: int = 1


class ChargeWithPrivate(Charge):
    _more: int = 1


class Open(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class Private(BaseModel):
    _secret: int = PrivateAttr(default=1)
    _trace: UUID = PrivateAttr(default_factory=uuid4)
    _unset: int = PrivateAttr()


class Counted(BaseModel):
    """Its hook changes it, as it may at each construction."""

    lines: list[int]

    def model_post_init(self, context: Any) -> None:
        self.lines.append(len(self.lines))


class Swapped(BaseModel):
    """Each field has the other's name as its alias."""

    model_config = ConfigDict(populate_by_name=True)
    a: int = Field(alias="b")
    b: int = Field(alias="a")


class Numbers(RootModel[list[int]]):
    pass


@dataclass
class Derived:
    net: int
    vat: InitVar[int]

    def __post_init__(self, vat: int) -> None:
        self.gross = self.net + vat


V = TypeVar("V")


@dataclass
class Box(Generic[V]):
    value: V

    @cached_property
    def size(self) -> int:
        return len(str(self.value))


made: list[Receipt] = []

VALUES: list[Any] = [
    Level.HIGH,
    Color.RED,
    Color.UNIQUE,
    Access.READ | Access.WRITE,
    Order.Status.PAID,
    Money(Decimal("1.50")),
    Receipt(UUID(int=1), (Money(Decimal(1)), Money(Decimal(2), "EUR"))),
    {"receipts": [Receipt(UUID(int=2), ())], Level.HIGH: Color.RED},
    Charge(amount=Decimal("1.0"), inner=Charge(amount=Decimal(2), due=date(2026, 1, 1))),
    Open.model_validate({"a": Color.RED, "fields": 1, "set": 2}),
    Open.model_validate({"cls": 1, "_fields_set": 2}),
    Private(),
    Counted(lines=[5]),
    Swapped(a=1, b=2),
    Numbers([1]),
    Box[int](1),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_comes_back_equal_in_value_and_type(value: Any) -> None:
    before = repr(value)
    back = loads(dumps(value))
    assert back == value
    assert type(back) is type(value)
    assert repr(back) == repr(value) == before


def test_a_value_that_is_not_equal_to_itself_comes_back() -> None:
    assert math.isnan(loads(dumps(Money(Decimal("NaN")))).amount)


def test_what_was_not_set_is_not_set() -> None:
    assert loads(dumps(Charge(amount=Decimal(1)))).model_dump(exclude_unset=True) == {
        "amount": Decimal(1)
    }


def test_nothing_of_the_class_runs() -> None:
    stored = dumps(Receipt(UUID(int=1), ()))
    before = len(made)
    loads(stored)
    assert len(made) == before


def test_a_private_attribute_comes_back() -> None:
    private = Private()
    private._secret = 2
    back = loads(dumps(private))
    assert (back._secret, back._trace) == (2, private._trace)
    assert not hasattr(back, "_unset")


def test_a_root_model_comes_back_with_nothing_else() -> None:
    numbers = Numbers([1])
    assert vars(loads(dumps(numbers))) == vars(numbers)


def test_a_cached_property_is_computed_again() -> None:
    box = Box(12)
    assert box.size == 2
    back = loads(dumps(box))
    assert vars(back) == {"value": 12}
    assert back.size == 2


def local() -> Any:
    @dataclass
    class Local:
        at: int

    return Local(1)


@pytest.mark.parametrize(
    "value",
    [
        local(),
        make_dataclass("Made", ["at"])(1),
        Incomparable(1),
        Container(1),
        Derived(1, 2),
        object.__new__(Money),
    ],
    ids=["local", "nameless", "compared by identity", "container", "derived", "half made"],
)
def test_what_would_not_come_back_is_refused(value: Any) -> None:
    with pytest.raises(ImproperlyUsed, match=rf"result: a .*{type(value).__name__} would not"):
        dumps(value)


def test_what_is_in_it_is_named_when_it_is_refused() -> None:
    with pytest.raises(ImproperlyUsed, match=r"result\['currency'\]: a builtins\.object would"):
        dumps(Money(Decimal(1), object()))  # type: ignore[arg-type]


# A row that was written before the class changed, or by somebody else


@pytest.fixture
def stored() -> bytes:
    return dumps(Money(Decimal(1)))


def test_a_class_that_is_gone(stored: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(f"{__name__}.Money")
    with pytest.raises(ResultUnavailable, match=r"instance of .*\.Money with amount, currency"):
        loads(stored)


@pytest.mark.parametrize("fields", [["amount"], ["amount", "currency", "more"], []])
def test_a_class_with_other_fields(
    fields: list[str], stored: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.Money", make_dataclass("Money", fields))
    with pytest.raises(ResultUnavailable, match="has changed since"):
        loads(stored)


@pytest.mark.parametrize("now", [ChargeWithField, ChargeWithPrivate])
def test_a_model_with_other_attributes(now: type, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = dumps(Charge(amount=Decimal(1)))
    monkeypatch.setattr(f"{__name__}.Charge", now)
    with pytest.raises(ResultUnavailable, match="has changed since"):
        loads(stored)


def test_a_member_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = dumps(Color.RED)
    monkeypatch.setattr(f"{__name__}.Color", Enum("Color", "BLUE"))
    with pytest.raises(ResultUnavailable, match="has changed since"):
        loads(stored)


@pytest.mark.parametrize(
    "name", ["subprocess.Popen", "builtins.list", "os.system", "idempotency.instances.sys"]
)
def test_a_row_cannot_name_anything_else(name: str) -> None:
    module, _, name = name.rpartition(".")
    with pytest.raises(ResultUnavailable):
        put_together(module, name, {"args": ["true"]})


def test_a_row_cannot_ask_a_module_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(sys.modules[__name__], "__getattr__", asked.append, raising=False)
    with pytest.raises(ResultUnavailable):
        put_together(__name__, "Lazy", {"amount": 1})
    assert not asked


def test_a_row_cannot_have_a_module_imported() -> None:
    assert "antigravity" not in sys.modules
    with pytest.raises(ResultUnavailable):
        put_together("antigravity", "Money", {"amount": 1})
    assert "antigravity" not in sys.modules
