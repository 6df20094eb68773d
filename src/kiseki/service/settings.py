"""`Settings`: every knob of a running process, with its default, its unit and the reason. Read once, then frozen.

Used by the composition root and the command line. `kiseki.service.settings_sources` fills it from the command line,
the environment, a TOML file and these defaults, in this order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from kiseki.kernel.errors import KisekiError

__all__ = ["ENVIRONMENT_PREFIX", "Profile", "Settings", "SettingsError"]

Profile = Literal["development", "production"]
ENVIRONMENT_PREFIX: Final = "KISEKI_"


class SettingsError(KisekiError):
    """A setting is unknown, of the wrong form, or unsafe. The message names it, where it was set, and what to do."""

    code = "SETTINGS"


def _by_profile(*, development: Any, production: Any) -> Any:
    """A default that depends on the profile (which is validated before the field that uses this)."""

    def choose(validated: dict[str, Any]) -> Any:
        return production if validated.get("profile") == "production" else development

    return choose


class Settings(BaseSettings):
    """What a process is told. Times in seconds, sizes in bytes. Equal for all processes of one service."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, extra="forbid", frozen=True, validate_default=True, case_sensitive=False
    )

    profile: Profile = Field("development", description="`production` refuses to start on anything unsafe.")
    data_dir: Path = Field(Path("data"), description="Where embedded stores live; the only place that is written.")

    # Stores, by URL (see `store_urls`). A URL may hold a password, so it is never shown.
    journal: str = Field("sqlite:", repr=False, description="sqlite:, postgresql://… or dynamodb://prefix?region=….")
    keys: str = Field("", repr=False, description="Keys of personal data; where the journal is, unless set.")
    read_model: str = Field("", repr=False, description="sqlite: or postgresql://…; where the journal is, unless set.")
    master_key: Path | None = Field(
        None, description="File of the master key (32 bytes, mode 0600), the same for all; in `data_dir` unless set."
    )
    journal_writers: int = Field(2, ge=1, le=64, description="PostgreSQL connections that append.")
    journal_readers: int = Field(4, ge=1, le=256, description="PostgreSQL connections that read the journal.")
    key_connections: int = Field(2, ge=1, le=64, description="PostgreSQL connections to the key store.")
    read_model_connections: int = Field(8, ge=1, le=256, description="PostgreSQL connections to read models.")
    dynamodb_connections: int = Field(64, ge=1, le=1_000, description="Calls to DynamoDB at a time.")
    stream_poll: float = Field(
        0.25, gt=0, le=60, description="Between looks at a DynamoDB stream; 30 where a Lambda is the fast way."
    )
    sweep_interval: float = Field(60.0, gt=0, le=3_600, description="Between sweeps for what a stream lost (DynamoDB).")

    # Where it listens. Port 0 takes any free port and prints it.
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on. Loopback unless told otherwise.")
    command_port: int = Field(18080, ge=0, le=65535, description="Command API.")
    query_port: int = Field(18082, ge=0, le=65535, description="Query API.")
    management_port: int = Field(8558, ge=0, le=65535, description="Health and metrics. Not for the public.")
    workers: int = Field(1, ge=1, le=256, description="API processes; above 1 a supervisor runs them and an updater.")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least level logged.")
    log_format: Literal["console", "json"] = Field(
        default_factory=_by_profile(development="console", production="json"),
        description="`json` is one object per line; the default of the production profile.",
    )

    # Shutdown. The delay is the time a load balancer needs to notice that readiness fails and to send no more.
    drain_delay: float = Field(
        default_factory=_by_profile(development=3.0, production=30.0),
        ge=0,
        le=600,
        description="How long to keep serving after readiness fails: 3 in development, 30 in production.",
    )
    unbind_timeout: float = Field(2.0, gt=0, le=600, description="To stop accepting connections.")
    requests_done_timeout: float = Field(10.0, gt=0, le=600, description="For requests that were accepted to end.")
    stop_timeout: float = Field(5.0, gt=0, le=600, description="To end connections and background services.")
    projections_timeout: float = Field(10.0, gt=0, le=600, description="For projections to finish their page.")
    flush_timeout: float = Field(5.0, gt=0, le=600, description="To write out what is buffered.")
    close_timeout: float = Field(5.0, gt=0, le=600, description="To close stores and pools.")
    termination_grace: float | None = Field(
        default_factory=_by_profile(development=None, production=120.0),
        gt=0,
        description="What the platform gives between SIGTERM and SIGKILL (ECS `stopTimeout`, at most 120; Kubernetes "
        "`terminationGracePeriodSeconds`, 30 unless set). The delays above must fit in it.",
    )

    # HTTP. Limits are checked before a request costs anything.
    body_limit: int = Field(65_536, ge=1_024, le=16_777_216, description="A request's body.")
    uri_limit: int = Field(2_048, ge=64, le=65_536, description="A request's target.")
    header_limit: int = Field(16_384, ge=1_024, le=262_144, description="All header fields of a request together.")
    read_timeout: float = Field(10.0, gt=0, le=300, description="For a request's head, and again for its body.")
    request_timeout: float = Field(10.0, gt=0, le=300, description="For handling a request; outer to all others.")
    keep_alive: float = Field(75.0, gt=0, le=3_600, description="Idle connections; outlasts a balancer's 60.")

    # GraphQL documents, checked before validation, which a small hostile document can make expensive.
    graphql_tokens: int = Field(1_000, ge=10, le=100_000, description="Tokens of a document.")
    graphql_depth: int = Field(16, ge=1, le=100, description="Nesting of fields.")
    graphql_fields: int = Field(300, ge=1, le=10_000, description="Fields, fragments counted where they are spread.")
    graphql_aliases: int = Field(30, ge=0, le=1_000, description="Aliases of a document.")
    graphql_directives: int = Field(30, ge=0, le=1_000, description="Directives of a document.")
    graphql_root_fields: int = Field(20, ge=1, le=1_000, description="Root fields of an operation.")

    # Commands.
    cache_idle: float = Field(120.0, gt=0, description="After this long unused a state leaves the cache.")
    cache_size: int = Field(10_000, ge=1, description="States in the cache of one process.")
    snapshot_every: int = Field(1_000, ge=1, description="Events between two snapshots of a stream.")
    snapshots_keep: int = Field(2, ge=1, le=100, description="Snapshots kept of each stream.")
    idempotency_hours: float = Field(24.0, gt=0, le=720, description="Hours an Idempotency-Key is remembered.")

    # Read models.
    consistency_wait: float = Field(2.0, ge=0, le=30, description="How long a query waits to see a client's write.")
    projection_page: int = Field(500, ge=1, le=10_000, description="Commits read from the feed at once.")

    health_interval: float = Field(2.0, gt=0, le=60, description="Between two checks of what readiness depends on.")
    disk_free: int = Field(67_108_864, ge=0, description="Free space in `data_dir` below which it is not ready.")

    @field_validator("log_level", "log_format", "profile", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @property
    def development(self) -> bool:
        """Whether conveniences of the development profile are on."""
        return self.profile == "development"

    @property
    def shutdown_total(self) -> float:
        """The longest that a coordinated shutdown takes, in seconds; under a supervisor the updater ends last."""
        ending = self.stop_timeout + self.projections_timeout + self.flush_timeout + self.close_timeout
        total = self.drain_delay + self.unbind_timeout + self.requests_done_timeout + ending
        return total if self.workers == 1 else total + ending

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Nothing but what it is made with: the sources are read, and checked, in `settings_sources`."""
        return (init_settings,)
