# nlicot on an NVIDIA GPU:
#   docker build -t nlicot .
#   docker run --gpus all -v "$PWD/data:/app/data" -v "$PWD/checkpoints:/app/checkpoints" nlicot \
#     fit --config configs/reflected.yaml --root data
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04

# A compiler for the kernels that torch builds at run time; Python 3.12 comes with Ubuntu 24.04.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv python3-dev g++ \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1001 --create-home --shell /usr/sbin/nologin nlicot \
    && install --directory --owner 1001 /app

WORKDIR /app
USER 1001
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1

# Dependencies first: a change of code does not reinstall them.
COPY --chown=1001 requirements.txt requirements-bundled.txt ./
RUN python3 -m venv .venv \
    && pip install --no-cache-dir --requirement requirements.txt \
    && pip install --no-cache-dir --no-deps --requirement requirements-bundled.txt

COPY --chown=1001 nlicot nlicot
COPY --chown=1001 configs configs
COPY --chown=1001 data data
COPY --chown=1001 checkpoints checkpoints

VOLUME ["/app/data", "/app/checkpoints"]
ENTRYPOINT ["python", "-m", "nlicot"]
CMD ["--help"]
