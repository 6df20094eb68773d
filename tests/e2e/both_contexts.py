"""Two contexts in one application, for tests that need people and sums."""

from examples.inventory import inventory
from kiseki import Application
from kiseki.users import users

app = Application(contexts=[users, inventory])
