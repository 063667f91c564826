# Stands in for the images of Valkey and Prometheus where no registry is at hand: the same programs
# from Debian, Redis 7.0 for Valkey, each under the name and for the user that compose expects.
ARG BASE=docker.io/library/debian:12.12-slim
FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends redis-server prometheus wget \
    && rm -rf /var/lib/apt/lists/* \
    && ln -s redis-server /usr/bin/valkey-server \
    && ln -s redis-cli /usr/bin/valkey-cli \
    && install --directory --mode=1777 /data /prometheus
USER 65534:65534
ENTRYPOINT ["/usr/bin/prometheus"]
