"""Stock of one article: received, reserved for orders, released, shipped. Pure.

The stream is the stock keeping unit (SKU), which whoever receives the first stock chooses: `Stock-TEA-GREEN-100G`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, assert_never

from kiseki import Command, Decider, Event, Rejected, State, StreamId, Text, WholeNumber

# Values


class Quantity(WholeNumber, minimum=1, maximum=1_000_000):
    """How many pieces."""


class ArticleName(Text, max_length=200):
    """What the article is called."""


class OrderId(Text, max_length=50):
    """The order that stock is reserved for."""


# Events. Names and versions are the storage format.


class ArticleListed(Event, name="ArticleListed", version=1):
    """The warehouse keeps this article from now on."""

    article: ArticleName


class StockReceived(Event, name="StockReceived", version=1):
    """Pieces came into the warehouse."""

    quantity: Quantity


class StockReserved(Event, name="StockReserved", version=1):
    """Pieces were set aside for an order."""

    order_id: OrderId
    quantity: Quantity


class ReservationReleased(Event, name="ReservationReleased", version=1):
    """An order gave its pieces back."""

    order_id: OrderId
    quantity: Quantity


class StockShipped(Event, name="StockShipped", version=1):
    """The pieces of an order left the warehouse."""

    order_id: OrderId
    quantity: Quantity


StockEvent: TypeAlias = ArticleListed | StockReceived | StockReserved | ReservationReleased | StockShipped


# State


class Stock(State):
    """What is in the warehouse, and what of it is spoken for."""

    article: str | None
    on_hand: int
    reserved: Mapping[str, int]

    @property
    def available(self) -> int:
        """Pieces that nobody has reserved."""
        return self.on_hand - sum(self.reserved.values())


def evolve(state: Stock, event: StockEvent) -> Stock:
    """The stock after an event."""
    match event:
        case ArticleListed(article=article):
            return Stock(article, state.on_hand, state.reserved)
        case StockReceived(quantity=quantity):
            return Stock(state.article, state.on_hand + quantity, state.reserved)
        case StockReserved(order_id=order_id, quantity=quantity):
            return Stock(state.article, state.on_hand, {**state.reserved, str(order_id): int(quantity)})
        case ReservationReleased(order_id=order_id):
            return Stock(state.article, state.on_hand, _without(state.reserved, order_id))
        case StockShipped(order_id=order_id, quantity=quantity):
            return Stock(state.article, state.on_hand - quantity, _without(state.reserved, order_id))
        case _:
            assert_never(event)


def _without(reserved: Mapping[str, int], order_id: str) -> Mapping[str, int]:
    return {order: quantity for order, quantity in reserved.items() if order != order_id}


# Commands


class ReceiveStock(Command):
    """Takes pieces into the warehouse."""

    sku: StreamId
    article: ArticleName
    quantity: Quantity


class ReserveStock(Command):
    """Sets pieces aside for an order."""

    sku: StreamId
    order_id: OrderId
    quantity: Quantity


class ReleaseReservation(Command):
    """Gives an order's pieces back."""

    sku: StreamId
    order_id: OrderId


class ShipStock(Command):
    """Sends an order's pieces out."""

    sku: StreamId
    order_id: OrderId


StockCommand: TypeAlias = ReceiveStock | ReserveStock | ReleaseReservation | ShipStock


# Decisions


def decide(command: StockCommand, state: Stock) -> Sequence[StockEvent]:
    """What a command does to the stock. Raises Rejected."""
    match command:
        case ReceiveStock(article=article, quantity=quantity):
            return _receive(article, quantity, state)
        case ReserveStock(order_id=order_id, quantity=quantity):
            return _reserve(order_id, quantity, state)
        case ReleaseReservation(order_id=order_id):
            return (ReservationReleased(order_id, _reserved(order_id, state)),)
        case ShipStock(order_id=order_id):
            return (StockShipped(order_id, _reserved(order_id, state)),)
        case _:
            assert_never(command)


def _receive(article: ArticleName, quantity: Quantity, state: Stock) -> Sequence[StockEvent]:
    if state.article is None:
        return (ArticleListed(article), StockReceived(quantity))
    if state.article != article:
        raise Rejected("OTHER_ARTICLE", "this SKU belongs to an article of another name")
    return (StockReceived(quantity),)


def _reserve(order_id: OrderId, quantity: Quantity, state: Stock) -> Sequence[StockEvent]:
    held = state.reserved.get(order_id)
    if held == quantity:
        return ()  # the same wish again: there is nothing to do
    if held is not None:
        raise Rejected("ALREADY_RESERVED", "the order has another reservation of this article; release it first")
    if quantity > state.available:
        raise Rejected("NOT_ENOUGH_STOCK", f"{state.available} pieces are available")
    return (StockReserved(order_id, quantity),)


def _reserved(order_id: OrderId, state: Stock) -> Quantity:
    held = state.reserved.get(order_id)
    if held is None:
        raise Rejected("NOT_RESERVED", "the order has no reservation of this article")
    return Quantity(held)


stock = Decider(
    "Stock",
    initial=Stock(article=None, on_hand=0, reserved={}),
    decide=decide,
    evolve=evolve,
    commands=StockCommand,
    events=StockEvent,
)
