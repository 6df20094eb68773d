"""The example inventory's decisions."""

from examples.inventory.domain import (
    ArticleListed,
    ArticleName,
    OrderId,
    Quantity,
    ReceiveStock,
    ReleaseReservation,
    ReservationReleased,
    ReserveStock,
    ShipStock,
    StockReceived,
    StockReserved,
    StockShipped,
    stock,
)
from examples.inventory.read_model import articles, reservations, stock_levels
from kiseki import StreamId
from kiseki.testing import following, scenario

SKU = StreamId("TEA-GREEN-100G")
TEA = ArticleName("緑茶")
ORDER = OrderId("A-1")


def test_the_first_receipt_lists_the_article() -> None:
    receive = ReceiveStock(SKU, TEA, Quantity(10))
    scenario(stock).when(receive).then(ArticleListed(TEA), StockReceived(Quantity(10)))
    given = scenario(stock).given(ArticleListed(TEA), StockReceived(Quantity(10)))
    given.when(receive).then(StockReceived(Quantity(10)))
    given.when(ReceiveStock(SKU, ArticleName("紅茶"), Quantity(1))).then_rejected("OTHER_ARTICLE")


def test_only_what_is_available_can_be_reserved() -> None:
    given = scenario(stock).given(
        ArticleListed(TEA), StockReceived(Quantity(10)), StockReserved(OrderId("B"), Quantity(7))
    )
    given.when(ReserveStock(SKU, ORDER, Quantity(4))).then_rejected("NOT_ENOUGH_STOCK")
    given.when(ReserveStock(SKU, ORDER, Quantity(3))).then(StockReserved(ORDER, Quantity(3)))
    given.when(ReserveStock(SKU, OrderId("B"), Quantity(7))).then_nothing()
    given.when(ReserveStock(SKU, OrderId("B"), Quantity(8))).then_rejected("ALREADY_RESERVED")


def test_releasing_and_shipping_need_a_reservation() -> None:
    given = scenario(stock).given(ArticleListed(TEA), StockReceived(Quantity(5)), StockReserved(ORDER, Quantity(5)))
    given.when(ReleaseReservation(SKU, ORDER)).then(ReservationReleased(ORDER, Quantity(5)))
    given.when(ShipStock(SKU, ORDER)).then(StockShipped(ORDER, Quantity(5)))
    given.when(ShipStock(SKU, OrderId("other"))).then_rejected("NOT_RESERVED")
    shipped = scenario(stock).given(
        ArticleListed(TEA),
        StockReceived(Quantity(5)),
        StockReserved(ORDER, Quantity(5)),
        StockShipped(ORDER, Quantity(5)),
    )
    shipped.when(ReserveStock(SKU, ORDER, Quantity(1))).then_rejected("NOT_ENOUGH_STOCK")


def test_the_read_model_adds_up() -> None:
    with following(stock_levels) as model:
        model.given(
            ArticleListed(TEA),
            StockReceived(Quantity(10)),
            StockReserved(ORDER, Quantity(4)),
            StockReserved(OrderId("B"), Quantity(1)),
            StockShipped(ORDER, Quantity(4)),
            stream="Stock-TEA",
        )
        model.then(articles, {"sku": "TEA", "article": "緑茶", "on_hand": 6, "reserved": 1})
        model.then(reservations, {"sku": "TEA", "order_id": "B", "quantity": 1})
        model.given(ReservationReleased(OrderId("B"), Quantity(1)), stream="Stock-TEA")
        model.then(articles, {"on_hand": 6, "reserved": 0}).then(reservations)
