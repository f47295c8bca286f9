# The image of trainbox: `make image`; without any registry: `BASE_IMAGE=fallback make image`.
# Any Debian or Ubuntu can be the base that has a Python of locks/ and its venv module, an AWS Deep Learning Container too.
# By digest: a tag moves. `docker buildx imagetools inspect python:3.12-slim-bookworm` says the newest.
ARG BASE_IMAGE=python:3.12.15-slim-bookworm@sha256:34386ef0cb081344d7ec1c103ba398e6e9f64e9ab3a1509accc92a4e24a07258

# --- what to install, by hash: another edit of pyproject.toml must not install the frameworks anew ----------------------
FROM ${BASE_IMAGE} AS requirements
ARG VARIANT=cpu
ARG EXTRAS=xgboost,sklearn,torch,serving
WORKDIR /requirements
COPY locks locks
COPY pyproject.toml tools/image/choose tools/image/requirements.py tools/image/sdists ./
RUN sh choose "${EXTRAS}" "${VARIANT}" chosen

# --- what changes seldom and weighs most: a virtual environment with the frameworks ------------------------------------
FROM ${BASE_IMAGE} AS dependencies
# PyTorch's own index has the wheels without CUDA; offline the wheelhouse has them.
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
# The time that every file gets, so that the same source gives the same layers. No commit's time: each would be a new
# layer. https://reproducible-builds.org/specs/source-date-epoch/
ARG SOURCE_DATE_EPOCH=315532800
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore TORCH_CPU_INDEX=${TORCH_CPU_INDEX}
WORKDIR /build
# What a layer will hold lies below a root of its own: a directory that COPY has to make would get the time of the build.
RUN python3 -m venv /opt/venv && mkdir -p /layer/dependencies/opt \
    && mv /opt/venv /layer/dependencies/opt && ln -s /layer/dependencies/opt/venv /opt/venv
# `wheelhous[e]` may be absent: a pattern that finds nothing is no error beside a file that is there.
COPY tools/image/from-lock tools/image/install tools/image/sdists tools/image/system wheelhous[e]/ wheelhouse/
COPY --from=requirements /requirements/chosen wheelhouse/
# The certificate of a network that inspects TLS is there for this step, and in no layer.
RUN --mount=type=secret,id=ca sh wheelhouse/install dependencies /layer/dependencies

# --- the package: small, changes with the code -------------------------------------------------------------------------
FROM dependencies AS package
RUN --mount=type=secret,id=ca sh wheelhouse/install backend
COPY tools/image/entry wheelhouse/
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
ARG EXTRAS=xgboost,sklearn,torch,serving
ARG REVISION=unknown
ARG CREATED=unknown
ARG BASE_NAME=unknown
ARG BASE_DIGEST=unknown
ARG PYTHON=unknown
ARG LOCK=unknown
ARG LOCK_DIGEST=unknown
LABEL org.opencontainers.image.title="trainbox" \
      org.opencontainers.image.description="Train your own algorithms on Amazon SageMaker" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.base.name="${BASE_NAME}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}" \
      trainbox.python="${PYTHON}" \
      trainbox.lock="${LOCK}" \
      trainbox.lock.digest="${LOCK_DIGEST}" \
      trainbox.variant="${VARIANT}" \
      trainbox.extras="${EXTRAS}" \
      com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true \
      com.amazonaws.sagemaker.capabilities.multi-models=true
# What `serve` binds unless SAGEMAKER_BIND_TO_PORT says otherwise.
EXPOSE 8080
# It becomes the command it is given: `train` or `serve` is PID 1 and gets the signals; `docker run IMAGE bash` is bash.
ENTRYPOINT ["/opt/venv/bin/trainbox-entry"]
CMD ["train"]
