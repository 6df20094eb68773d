# syntax=docker/dockerfile:1.7@sha256:a57df69d0ea827fb7266491f2813635de6f17269be881f696fbfdf2d83dda33e
# An emulator of AWS (DynamoDB, its streams, KMS and more), for compose.yaml. Never for anything that has to stay.

FROM python:3.13.15-slim-bookworm@sha256:2325bb286ec344af3e5898cc224b5844e2707ac6e26b1632516fd3edc84a5e26
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
COPY requirements-emulators.lock /opt/
RUN python -m venv /opt/emulator && \
    /opt/emulator/bin/pip install --require-hashes --only-binary :all: -r /opt/requirements-emulators.lock && \
    install --directory --owner=10001 --group=10001 --mode=0750 /var/lib/emulator
ENV PATH=/opt/emulator/bin:${PATH} \
    HOME=/var/lib/emulator \
    TMPDIR=/var/lib/emulator \
    PYTHONDONTWRITEBYTECODE=1 \
    BIND_HOST=0.0.0.0 \
    GATEWAY_PORT=4566 \
    IOT_MTLS_ENABLED=0 \
    LOG_LEVEL=WARNING \
    PERSIST_STATE=1 \
    STATE_DIR=/var/lib/emulator/state \
    S3_DATA_DIR=/var/lib/emulator/s3
VOLUME ["/var/lib/emulator"]
USER 10001:10001
EXPOSE 4566
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:4566/_ministack/health', timeout=4)"]
ENTRYPOINT ["python", "-m", "ministack"]
