# The console: tasks and rounds in a browser.
# Build it from the root of the repository:
#   docker build --file ops/console.Dockerfile --tag fedrecon-console .
ARG BASE=docker.io/library/python:3.11.13-slim-bookworm

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
COPY . .
# What devices compute with is not used here: 70 MB.
RUN python3 -m venv /opt/fedrecon \
    && /opt/fedrecon/bin/pip install ./device_sdk '.[ops]' \
    && /opt/fedrecon/bin/pip uninstall --yes onnxruntime flatbuffers \
    && /opt/fedrecon/bin/pip uninstall --yes pip setuptools \
    && find /opt/fedrecon -type d -name tests -prune -exec rm -rf {} +

FROM ${BASE}
RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/fedrecon --create-home fedrecon
COPY --from=build /opt/fedrecon /opt/fedrecon
COPY LICENSE /usr/share/doc/fedrecon/LICENSE
ENV PATH=/opt/fedrecon/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    FEDRECON_HOME=/var/lib/fedrecon \
    FEDRECON_HOST=0.0.0.0 \
    FEDRECON_LOG_FORMAT=json \
    FEDRECON_METRICS_PORT=9090
WORKDIR /var/lib/fedrecon
USER 10001:10001
EXPOSE 7005 7006 9090
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-m", "fedrecon.ops.probe", "console"]
ENTRYPOINT ["python", "-m", "fedrecon.ops.console"]
