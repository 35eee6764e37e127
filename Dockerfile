# dcclctl on a CPU. Build: docker build -t dcclctl .
# Run on the logs of this folder: docker run --rm -v "$PWD:/data" dcclctl ingest clicks.csv
FROM python:3.11-slim

# The CPU build of torch, because plain PyPI's comes with CUDA, several gigabytes. Its version, 2.x+cpu, wins over 2.x.
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN --mount=type=bind,target=/src \
    pip install --no-cache-dir --disable-pip-version-check -c /src/constraints.txt torch

# Built from a copy, because the mounted sources cannot be written.
RUN --mount=type=bind,target=/src \
    cp -r /src /tmp/dcclctl \
    && pip install --no-cache-dir --disable-pip-version-check -c /src/constraints.txt /tmp/dcclctl \
    && rm -rf /tmp/dcclctl

# Files that it makes in a mounted folder belong to this user; another one: docker run --user "$(id -u):$(id -g)"
RUN useradd --create-home --uid 1000 dcclctl
USER dcclctl
WORKDIR /data
ENTRYPOINT ["dcclctl"]
CMD ["--help"]
