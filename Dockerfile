# The image of trainbox. Online: `docker build -t trainbox:cpu .`; `make image` also works without any registry.
# Any Debian or Ubuntu with Python >= 3.11 and its venv module can be the base, an AWS Deep Learning Container too.
ARG BASE_IMAGE=python:3.12-slim-bookworm

# --- what to install, in words: another edit of pyproject.toml must not install the frameworks anew ---------------------
FROM ${BASE_IMAGE} AS requirements
ARG VARIANT=cpu
ARG EXTRAS=xgboost,sklearn,torch
WORKDIR /requirements
COPY pyproject.toml tools/image/requirements.py ./
RUN python3 requirements.py "${EXTRAS}" "${VARIANT}" >requirements.txt

# --- what changes seldom and weighs most: a virtual environment with the frameworks ------------------------------------
FROM ${BASE_IMAGE} AS dependencies
ARG VARIANT=cpu
# PyTorch's own index has the wheels without CUDA; offline the wheelhouse has them.
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
# The time that every file gets, so that the same source gives the same layers. No commit's time: each would be a new
# layer. https://reproducible-builds.org/specs/source-date-epoch/
ARG SOURCE_DATE_EPOCH=315532800
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
# What a layer will hold lies below a root of its own: a directory that COPY has to make would get the time of the build.
RUN python3 -m venv /opt/venv && mkdir -p /layer/dependencies/opt \
    && mv /opt/venv /layer/dependencies/opt && ln -s /layer/dependencies/opt/venv /opt/venv
# `wheelhous[e]` may be absent: a pattern that finds nothing is no error beside a file that is there.
COPY constraints.txt tools/image/install wheelhous[e]/ wheelhouse/
COPY --from=requirements /requirements/requirements.txt wheelhouse/
RUN sh wheelhouse/install dependencies /layer/dependencies "${VARIANT}" "${TORCH_CPU_INDEX}"

# --- the package: small, changes with the code -------------------------------------------------------------------------
FROM dependencies AS package
RUN sh wheelhouse/install backend
COPY tools/image/train.py tools/image/pack_start.py wheelhouse/
COPY pyproject.toml README.md LICENSE ./
COPY container container
# The scripts are a layer of their own below: the wheel is built without them, and finds them through a link.
RUN mkdir train_scripts && sh wheelhouse/install package /layer/package

# --- the training scripts: smallest, changes most ----------------------------------------------------------------------
FROM ${BASE_IMAGE} AS scripts
ARG SOURCE_DATE_EPOCH=315532800
COPY train_scripts /layer/scripts/opt/train_scripts
# Readable for any user, and the same whatever the checkout's umask was.
RUN chmod -R u=rwX,go=rX /layer/scripts && find /layer/scripts -exec touch --date "@${SOURCE_DATE_EPOCH}" {} +

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
COPY --from=dependencies /layer/dependencies /
COPY --from=package /layer/package /
COPY --from=scripts /layer/scripts /
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
