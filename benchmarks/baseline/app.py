"""The ordinary service: FastAPI in front of Strawberry, a JWT and a rate limit on each request."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import jwt
from fastapi import Depends, FastAPI, HTTPException, status
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from sqlalchemy.ext.asyncio import async_sessionmaker
from strawberry.fastapi import GraphQLRouter

from benchmarks.baseline.database import create_tables, reading_engine, writing_engine
from benchmarks.baseline.schema import Context, create_schema
from benchmarks.baseline.service import UserAccountService
from benchmarks.baseline.settings import Settings

JWT_ISSUER = "baseline"
JWT_AUDIENCE = "baseline"


def create_app() -> FastAPI:
    """The application, as uvicorn's --factory wants it."""
    settings = Settings.from_environment()
    writing = writing_engine(settings.database)
    reading = reading_engine(settings.database)
    service = UserAccountService(
        async_sessionmaker(writing, expire_on_commit=False),
        async_sessionmaker(reading, expire_on_commit=False),
    )
    limiter = FixedWindowRateLimiter(MemoryStorage())
    limit = parse(settings.rate_limit)
    bearer = HTTPBearer(auto_error=False)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await create_tables(writing)
        yield
        await writing.dispose()
        await reading.dispose()

    async def authenticated_subject(
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
    ) -> str:
        challenge = {"WWW-Authenticate": "Bearer"}
        if credentials is None:
            raise HTTPException(status.HTTP_401_UNAUTHORIZED, headers=challenge)
        try:
            claims = jwt.decode(
                credentials.credentials,
                settings.jwt_secret,
                algorithms=["HS256"],
                issuer=JWT_ISSUER,
                audience=JWT_AUDIENCE,
                options={"require": ["exp", "iat", "sub"]},
            )
        except jwt.InvalidTokenError as error:
            raise HTTPException(status.HTTP_401_UNAUTHORIZED, headers=challenge) from error
        return str(claims["sub"])

    async def context(subject: Annotated[str, Depends(authenticated_subject)]) -> Context:
        if not limiter.hit(limit, subject):
            raise HTTPException(status.HTTP_429_TOO_MANY_REQUESTS)
        return Context(subject, service)

    app = FastAPI(lifespan=lifespan)
    schema = create_schema(caches=settings.graphql_caches)
    app.include_router(GraphQLRouter(schema, context_getter=context), prefix="/api/graphql")

    @app.get("/api/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    return app
