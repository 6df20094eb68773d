"""`Settings`: every knob of a running process, with its default, its unit and the reason. Read once, then frozen.

Used by the composition root and the command line. `kiseki.service.settings_sources` fills it from the command line,
the environment, a TOML file and these defaults, in this order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BeforeValidator, Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from kiseki.kernel.errors import KisekiError

__all__ = ["ENVIRONMENT_PREFIX", "Profile", "Settings", "SettingsError"]

Profile = Literal["development", "production"]
ENVIRONMENT_PREFIX: Final = "KISEKI_"


class SettingsError(KisekiError):
    """A setting is unknown, of the wrong form, or unsafe. The message names it, where it was set, and what to do."""

    code = "SETTINGS"


def _names(value: object) -> object:
    """A list as it stands in an environment variable."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Names: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_names), NoDecode]


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
    master_key: str = Field(
        "",
        description="A file (32 bytes, mode 0600), aws-kms://key?region=… or vault-transit://mount/key, the same for "
        "all; in `data_dir` unless set.",
    )
    master_keys_previous: Names = Field((), description="Master keys that are only read with, until all is re-wrapped.")
    journal_writers: int = Field(2, ge=1, le=64, description="PostgreSQL connections that append.")
    journal_readers: int = Field(4, ge=1, le=256, description="PostgreSQL connections that read the journal.")
    key_connections: int = Field(2, ge=1, le=64, description="PostgreSQL connections to the key store.")
    read_model_connections: int = Field(8, ge=1, le=256, description="PostgreSQL connections to read models.")
    dynamodb_connections: int = Field(64, ge=1, le=1_000, description="Calls to DynamoDB at a time.")
    stream_poll: float = Field(
        0.25, gt=0, le=60, description="Between looks at a DynamoDB stream; 30 where a Lambda is the fast way."
    )
    sweep_interval: float = Field(60.0, gt=0, le=3_600, description="Between sweeps for what a stream lost (DynamoDB).")

    # Two sites, of which one writes. See docs/operations/failover.md.
    site: str = Field("", max_length=100, description="Which of the two sites this is; needed with `lease`.")
    primary_region: str = Field("", max_length=100, description="The site that writes unless there was a failover.")
    secondary_region: str = Field("", max_length=100, description="The site that it is replicated to.")
    lease: str = Field(
        "",
        repr=False,
        description="Who writes, kept in a third region: a folder, postgresql://… or dynamodb://prefix?region=….",
    )
    lease_seconds: float = Field(
        60.0, ge=1, le=600, description="How long a site that was cut off goes on, and a forced failover waits."
    )

    # Who may ask. A secret is given as file:///path, aws-sm://name#field, vault://mount/path#field, or as it is.
    token_issuer: str = Field("", max_length=1_000, description="The `iss` that tokens have to name.")
    token_audience: str = Field("kiseki", min_length=1, max_length=1_000, description="The `aud` that they name.")
    token_secret: str = Field("", repr=False, description="Secret of HS256, at least 32 random bytes.")
    token_keys: Names = Field((), description="Files of public keys: PEM, or a JWKS (RS256, PS256, ES256, EdDSA).")
    token_rsa: Literal["RS256", "PS256"] = Field("RS256", description="The algorithm of RSA keys that name none.")
    jwks_url: str = Field("", description="Where public keys are published (https).")
    jwks_refresh: float = Field(300.0, ge=10, le=86_400, description="Between two looks at `jwks_url`.")
    token_type: Literal["", "JWT", "at+jwt"] = Field(
        "", description="The `typ` that tokens have to name; any unless set."
    )
    token_lifetime: float = Field(3_600.0, ge=60, le=86_400, description="The longest that a token may be valid.")
    token_leeway: float = Field(30.0, ge=0, le=60, description="By how much clocks may differ.")
    token_cache: int = Field(10_000, ge=0, le=1_000_000, description="Verified tokens that a process remembers.")
    revocation_poll: float = Field(5.0, gt=0, le=300, description="A revocation counts everywhere within this time.")

    # How often. One unit for each root field of a document; more for pages of over 100.
    rate_limit: int = Field(
        default_factory=_by_profile(development=1_000_000, production=100),
        ge=1,
        le=1_000_000,
        description="Units of one subject in any 60 seconds: 100 in production.",
    )
    rate_limit_address: int = Field(
        default_factory=_by_profile(development=1_000_000, production=300),
        ge=1,
        le=1_000_000,
        description="Requests of one address in any 60 seconds: 300 in production.",
    )
    rate_store: str = Field("", repr=False, description="redis(s)://… of several processes; else `memory`, of one.")
    rate_store_ca: Path | None = Field(None, description="Authority of its certificate; the system's unless set.")
    trusted_proxies: Names = Field((), description="Networks whose X-Forwarded-For is believed, such as 10.0.0.0/8.")

    # Transport.
    tls_certificate: Path | None = Field(None, description="Certificate chain (PEM) of both APIs.")
    tls_key: Path | None = Field(None, description="Its private key (PEM, mode 0600).")
    tls_key_password: str = Field("", repr=False, description="Password of the key, if it has one.")
    tls_minimum: Literal["1.3", "1.2"] = Field("1.3", description="The oldest version of TLS that is spoken.")
    tls_client_ca: Path | None = Field(None, description="Authority of client certificates, which are then required.")
    tls_handshake_timeout: float = Field(10.0, gt=0, le=300, description="For a client to agree on TLS.")
    tls_proxy: bool = Field(False, description="A proxy in front ends TLS, and nobody else reaches these ports.")
    hosts: Names = Field((), description="Names that Host may have; any unless set.")
    cors_origins: Names = Field((), description="Origins whose pages may call the APIs; none unless set.")
    connections: int = Field(10_000, ge=10, le=1_000_000, description="Open connections of one API.")
    connections_address: int = Field(1_000, ge=1, le=1_000_000, description="Open connections of one address.")

    # Audit.
    audit_dir: Path | None = Field(
        None, description="Where the audit log is written; `audit` in `data_dir` unless set."
    )
    audit_sinks: Names = Field(("file",), description="file, stdout, database (PostgreSQL); several with commas.")
    audit_database: str = Field("", repr=False, description="postgresql://… of the audit table.")
    audit_key: str = Field("", repr=False, description="Secret of its hash chain; a file in `data_dir` in development.")
    audit_keys_previous: Names = Field((), repr=False, description="Earlier secrets, which are only verified with.")
    audit_anchors: str = Field("", repr=False, description="Where heads are kept besides: a folder, or postgresql://….")
    audit_failure: Literal["refuse", "continue"] = Field(
        default_factory=_by_profile(development="continue", production="refuse"),
        description="What happens to what can't be recorded: it is refused, or goes on and is logged.",
    )

    # Personal data.
    erasure_ledger: str = Field(
        "",
        repr=False,
        description="Outside all backups: a folder, postgresql://… or dynamodb://…; in `data_dir` unless set.",
    )
    erasure_replay_every: float = Field(
        300.0, gt=0, le=86_400, description="Between two looks whether every erasure of the ledger is in force."
    )
    key_cache_seconds: float = Field(300.0, ge=0, le=3_600, description="How long unwrapped keys stay in memory.")

    # Backups. A place is a folder, or s3://bucket/prefix?region=eu-west-1.
    backup: str = Field("", description="Where backups of journal, claims and audit log go.")
    backup_keys: str = Field("", description="Where backups of the key store go: never beside those of the journal.")
    backup_read_models: str = Field("", description="Where backups of read models go; none unless set.")
    backup_days: float | None = Field(
        None, gt=0, le=3_650, description="Days that backups are kept; 30 with DynamoDB, else 7."
    )
    backup_private_days: float = Field(
        6.0,
        gt=0,
        le=7,
        description="Days that copies of keys and read models are kept: with a prune a day they are gone within 7, as "
        "promised to the erased.",
    )
    backup_base: bool = Field(False, description="PostgreSQL: base backups of the cluster, besides dumps.")
    protection_interval: float = Field(
        60.0, ge=1, le=300, description="Between two copies of what is new, by `kiseki backup protect`."
    )
    postgres_programs: Path | None = Field(
        None, description="Folder of pg_dump, pg_restore and so on; those on PATH unless set."
    )

    # Where secrets are.
    secret_refresh: float = Field(300.0, ge=1, le=86_400, description="Between two looks whether a secret changed.")
    vault_address: str = Field("", description="https://… of Vault or OpenBao, for vault:// and vault-transit://.")
    vault_token_file: Path | None = Field(None, description="File of a Vault token, renewed by an agent.")
    vault_role_id: str = Field("", description="AppRole to log in with.")
    vault_secret_id: str = Field("", repr=False, description="Secret of the AppRole: file:///path.")
    vault_ca: Path | None = Field(None, description="Authority of Vault's certificate; the system's unless set.")

    # Where it listens. Port 0 takes any free port and prints it.
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on. Loopback unless told otherwise.")
    command_port: int = Field(18080, ge=0, le=65535, description="Command API.")
    query_port: int = Field(18082, ge=0, le=65535, description="Query API.")
    management_port: int = Field(8558, ge=0, le=65535, description="Health and metrics. Not for the public.")
    management_host: str = Field("", description="Address of the management port; `host` unless set.")
    workers: int = Field(1, ge=1, le=256, description="API processes; above 1 a supervisor runs them and an updater.")

    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least level logged.")
    log_format: Literal["console", "json"] = Field(
        default_factory=_by_profile(development="console", production="json"),
        description="`json` is one object per line; the default of the production profile.",
    )

    embedded_metrics: float = Field(
        0.0,
        ge=0,
        le=3_600,
        description="Seconds between two lines of metrics on standard output that CloudWatch reads (embedded metric "
        "format); 0 writes none.",
    )
    metrics_namespace: str = Field(
        "kiseki",
        pattern=r"^[A-Za-z0-9._#-]{1,255}$",
        description="CloudWatch's namespace of these metrics and of the Lambda's; one for each service in an account.",
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
        "`terminationGracePeriodSeconds`, 30 unless set). What a process does of the above must fit in it.",
    )

    # HTTP. Limits are checked before a request costs anything.
    body_limit: int = Field(65_536, ge=1_024, le=16_777_216, description="A request's body.")
    uri_limit: int = Field(2_048, ge=64, le=65_536, description="A request's target.")
    header_limit: int = Field(16_384, ge=1_024, le=262_144, description="All header fields of a request together.")
    read_timeout: float = Field(10.0, gt=0, le=300, description="For a request's head, and again for its body.")
    write_timeout: float = Field(30.0, gt=0, le=300, description="For a client that does not read its answer.")
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
    stuck_after: float = Field(
        30.0, gt=0, le=600, description="A process of `workers` that answers nothing for so long is started again."
    )
    disk_free: int = Field(67_108_864, ge=0, description="Free space in `data_dir` below which it is not ready.")

    @field_validator("log_level", "log_format", "profile", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @property
    def development(self) -> bool:
        """Whether conveniences of the development profile are on."""
        return self.profile == "development"

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
