# The node's image: small, non-root, without GPL code. LOCK=requirements-learn.lock makes the one with the `learn` extra.
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
# The batch kernel is compiled here; the image that runs has no compiler.
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev \
 && rm -rf /var/lib/apt/lists/*
ARG LOCK=requirements-node.lock
COPY requirements-node.lock requirements-learn.lock pyproject.toml README.md LICENSE ./
RUN python -m venv /opt/lianfang \
 && /opt/lianfang/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r "$LOCK" \
 && /opt/lianfang/bin/pip install --no-cache-dir "setuptools==84.2.1"
COPY nodes nodes
COPY protocols protocols
COPY federation federation
COPY proto proto
RUN /opt/lianfang/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
 && (cd / && /opt/lianfang/bin/python -I -c 'from protocols import _ristretto') \
 && /opt/lianfang/bin/pip uninstall --yes setuptools pip \
 && find /opt/lianfang/lib -type d \( -name tests -o -path '*/pyarrow/include' -o -path '*/pyarrow/src' \) -prune -exec rm -r {} + \
 && find /opt/lianfang/lib -name '*.so*' -type f -not -path '*.libs/*' -exec strip --strip-unneeded {} + \
 && cd / && /opt/lianfang/bin/python -I -c 'from protocols import _ristretto, group; from nodes import node' \
 && if grep -q '^flwr==' "/src/$LOCK"; then /opt/lianfang/bin/python -I -c 'from nodes.learning import mount'; fi

FROM python:3.11-slim-bookworm
RUN groupadd --gid 10001 lianfang \
 && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin lianfang \
 && install -d -o lianfang -g lianfang -m 0700 /data /enrol
COPY --from=build /opt/lianfang /opt/lianfang
ENV PATH=/opt/lianfang/bin:$PATH PYTHONUNBUFFERED=1 LIANFANG_CONFIG=/data/node.toml
USER lianfang
VOLUME ["/data"]
EXPOSE 7443 7444
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 CMD ["lianfang", "ping"]
CMD ["lianfang", "serve"]
