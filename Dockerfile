# The image of trainbox. Online: `docker build -t trainbox:cpu .`; `make image` also works without any registry.
# Any Debian or Ubuntu with Python >= 3.11 and its venv module can be the base, an AWS Deep Learning Container too.
ARG BASE_IMAGE=python:3.12-slim-bookworm

# --- what changes seldom and weighs most: a virtual environment with the frameworks ------------------------------------
FROM ${BASE_IMAGE} AS dependencies
ARG VARIANT=cpu
ARG EXTRAS=xgboost,sklearn,torch
# PyTorch's own index has the wheels without CUDA; offline the wheelhouse has them.
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
# The same pyc files whenever they are compiled: https://reproducible-builds.org/specs/source-date-epoch/
ARG SOURCE_DATE_EPOCH=0
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python3 -m venv /opt/venv
# `wheelhous[e]` may be absent: a pattern that finds nothing is no error beside a file that is there.
COPY pyproject.toml constraints.txt tools/image/requirements.py tools/image/install wheelhous[e]/ wheelhouse/
RUN sh wheelhouse/install "${EXTRAS}" "${VARIANT}" "${TORCH_CPU_INDEX}"

# --- the package: small, changes with the code -------------------------------------------------------------------------
FROM dependencies AS package
COPY pyproject.toml README.md LICENSE ./
COPY container container
# The scripts are a layer of their own below: the wheel is built without them, and finds them through a link.
RUN mkdir train_scripts \
    && sh wheelhouse/install --package /opt/package

# --- what runs ---------------------------------------------------------------------------------------------------------
FROM ${BASE_IMAGE} AS runtime
# HOME: any uid may run this, also one that /etc/passwd does not know. NVIDIA_*: what the container toolkit passes in.
ENV PATH=/opt/venv/bin:${PATH} \
    HOME=/tmp \
    LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONFAULTHANDLER=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=dependencies /opt/venv /opt/venv
COPY --from=package /opt/package /opt/venv
COPY train_scripts /opt/train_scripts
# Last: what is different in every build must not make the layers above anew.
ARG VARIANT=cpu
ARG EXTRAS=xgboost,sklearn,torch
ARG REVISION=unknown
ARG CREATED=unknown
LABEL org.opencontainers.image.title="trainbox" \
      org.opencontainers.image.description="Train your own algorithms on Amazon SageMaker" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      trainbox.variant="${VARIANT}" \
      trainbox.extras="${EXTRAS}"
# `env` becomes the command it is given: `train` is PID 1 and gets the signals, and `docker run IMAGE bash` is bash.
ENTRYPOINT ["/usr/bin/env", "--"]
CMD ["train"]
