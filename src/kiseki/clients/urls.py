"""What the addresses of all stores have in common: the error for one that can't be understood."""

from __future__ import annotations

from kiseki.kernel.errors import KisekiError

__all__ = ["StoreUrlInvalid"]


class StoreUrlInvalid(KisekiError):
    """The URL of a store can't be used. The message says what is wrong with it and never shows the URL itself."""

    code = "STORE_URL"
