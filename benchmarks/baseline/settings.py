"""What the ordinary service reads from its environment."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Settings of one process."""

    database: str
    jwt_secret: str
    graphql_caches: bool
    rate_limit: str

    @classmethod
    def from_environment(cls) -> "Settings":
        return cls(
            database=os.environ["BASELINE_DATABASE"],
            jwt_secret=os.environ["BASELINE_JWT_SECRET"],
            graphql_caches=os.environ["BASELINE_GRAPHQL_CACHES"] == "on",
            rate_limit=os.environ["BASELINE_RATE_LIMIT"],
        )
