"""The read model of stock: how many pieces of each article, and which order holds what."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, assert_never

from sqlalchemy import Column, Integer, MetaData, Row, String, Table, delete, insert, select, update

from examples.inventory.domain import (
    ArticleListed,
    ReservationReleased,
    StockEvent,
    StockReceived,
    StockReserved,
    StockShipped,
)
from kiseki import (
    Arguments,
    Change,
    EventMetadata,
    Projection,
    Query,
    ReadModel,
    StreamId,
    UtcDateTime,
    View,
    WholeNumber,
)

metadata = MetaData(schema="stock_levels")

articles = Table(
    "articles",
    metadata,
    Column("sku", String(200), primary_key=True),
    Column("article", String(200), nullable=False),
    Column("on_hand", Integer, nullable=False),
    Column("reserved", Integer, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
)

reservations = Table(
    "reservations",
    metadata,
    Column("sku", String(200), primary_key=True),
    Column("order_id", String(50), primary_key=True),
    Column("quantity", Integer, nullable=False),
)


# Projection


def apply(event: StockEvent, about: EventMetadata) -> Sequence[Change]:
    """The changes that follow from one event."""
    sku = about.stream_id
    match event:
        case ArticleListed(article=article):
            row = {"sku": sku, "article": article, "on_hand": 0, "reserved": 0, "updated_at": about.occurred_at}
            return (insert(articles).values(row),)
        case StockReceived(quantity=quantity):
            return (_changed(about, on_hand=quantity),)
        case StockReserved(order_id=order_id, quantity=quantity):
            row = {"sku": sku, "order_id": order_id, "quantity": quantity}
            return (_changed(about, reserved=quantity), insert(reservations).values(row))
        case ReservationReleased(order_id=order_id, quantity=quantity):
            return (_changed(about, reserved=-quantity), _ended(sku, order_id))
        case StockShipped(order_id=order_id, quantity=quantity):
            return (_changed(about, on_hand=-quantity, reserved=-quantity), _ended(sku, order_id))
        case _:
            assert_never(event)


def _changed(about: EventMetadata, *, on_hand: int = 0, reserved: int = 0) -> Change:
    return (
        update(articles)
        .where(articles.c.sku == about.stream_id)
        .values(
            on_hand=articles.c.on_hand + on_hand,
            reserved=articles.c.reserved + reserved,
            updated_at=about.occurred_at,
        )
    )


def _ended(sku: str, order_id: str) -> Change:
    return delete(reservations).where(reservations.c.sku == sku, reservations.c.order_id == order_id)


stock_levels = Projection("stock_levels", version=1, tables=[articles, reservations], events=StockEvent, apply=apply)


# Queries


class Threshold(WholeNumber, minimum=0, maximum=1_000_000):
    """A number of pieces."""


class Reservation(View):
    """What an order holds."""

    order_id: str
    quantity: int


class StockLevel(View):
    """An article in the warehouse."""

    sku: str
    article: str
    on_hand: int
    reserved: int
    available: int
    updated_at: datetime
    reservations: tuple[Reservation, ...]


class GetStock(Arguments):
    """Which article."""

    sku: StreamId


class LowStock(Arguments):
    """Up to how many available pieces an article counts as low."""

    at_most: Threshold = Threshold(10)


async def get_stock(arguments: GetStock, read: ReadModel) -> StockLevel | None:
    """One article's stock with its reservations; null when nothing was ever received."""
    row = await read.first(select(articles).where(articles.c.sku == arguments.sku))
    if row is None:
        return None
    held = await read.all(
        select(reservations).where(reservations.c.sku == arguments.sku).order_by(reservations.c.order_id)
    )
    return _level(row, held)


async def get_low_stock(arguments: LowStock, read: ReadModel) -> tuple[StockLevel, ...]:
    """Articles that are running out, fewest first, at most 1,000."""
    available = articles.c.on_hand - articles.c.reserved
    rows = await read.all(
        select(articles).where(available <= arguments.at_most).order_by(available, articles.c.sku).limit(1_000)
    )
    held = await read.all(select(reservations).where(reservations.c.sku.in_([row.sku for row in rows])))
    return tuple(_level(row, [item for item in held if item.sku == row.sku]) for row in rows)


def _level(row: Row[Any], held: Sequence[Row[Any]]) -> StockLevel:
    return StockLevel(
        sku=row.sku,
        article=row.article,
        on_hand=row.on_hand,
        reserved=row.reserved,
        available=row.on_hand - row.reserved,
        updated_at=row.updated_at,
        reservations=tuple(Reservation(item.order_id, item.quantity) for item in held),
    )


queries = [
    Query("getStock", get_stock, reads=[stock_levels], roles={"user", "admin"}),
    Query("getLowStock", get_low_stock, reads=[stock_levels], roles={"user", "admin"}),
]
