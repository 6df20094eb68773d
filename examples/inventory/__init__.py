"""An inventory: receive, reserve, release and ship stock. Run it with `kiseki serve --app examples.inventory:app`."""

from examples.inventory.domain import ReceiveStock, ReleaseReservation, ReserveStock, ShipStock, stock
from examples.inventory.read_model import queries, stock_levels
from kiseki import Application, Context

inventory = Context(
    "inventory",
    deciders=[stock],
    projections=[stock_levels],
    queries=queries,
    access={
        ReceiveStock: {"user", "admin"},
        ReserveStock: {"user", "admin"},
        ReleaseReservation: {"user", "admin"},
        ShipStock: {"user", "admin"},
    },
)

app = Application(contexts=[inventory])
