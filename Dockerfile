# One image for every service; the argument says which: `serve edge`.
FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m venv /opt/onegate
COPY requirements.lock requirements-build.lock ./
RUN /opt/onegate/bin/pip install --no-cache-dir --require-hashes -r requirements.lock \
  && pip install --no-cache-dir --require-hashes -r requirements-build.lock
COPY pyproject.toml README.md LICENSE ./
COPY onegate onegate
COPY runtime runtime
COPY services services
COPY edge edge
COPY cli cli
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir dist . \
  && /opt/onegate/bin/pip install --no-cache-dir --no-deps dist/*.whl

FROM python:3.13-slim
RUN useradd --uid 10001 --create-home --home-dir /var/lib/onegate onegate
COPY --from=build /opt/onegate /opt/onegate
ENV PATH=/opt/onegate/bin:$PATH PYTHONUNBUFFERED=1 \
    MALLOC_ARENA_MAX=2 \
    GRPC_EXPERIMENTS=-event_engine_client,-event_engine_listener
USER 10001:10001
WORKDIR /var/lib/onegate
EXPOSE 8080 50051
ENTRYPOINT ["onegate"]
CMD ["up", "--host", "0.0.0.0"]
