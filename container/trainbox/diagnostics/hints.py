"""What to do about a failure that many people meet, found by the exception or by the words of what wrote them."""

import errno
import os
import re
from collections.abc import Sequence

from trainbox.contract.text import did_you_mean
from trainbox.diagnostics.cause import Cause

# Every expression is linear in the length of the text (see `cause`).

MEMORY_HINT = "the data do not fit this instance: use a larger one, or read them in parts"
_GPU_HINT = "lower the batch size, or use an instance with more GPU memory"
_POOL_HINT = (
    "a worker process ended without an exception: often the kernel ends it for memory. Use fewer workers or a larger"
    " instance; one worker, or none, shows where"
)
SHARED_MEMORY_HINT = (
    "the shared memory (/dev/shm) is full: fewer or no data loader workers, smaller batches, a larger --shm-size with"
    " docker, or torch.multiprocessing.set_sharing_strategy('file_system')"
)
_HINTS = {
    "MemoryError": MEMORY_HINT,
    "numpy._core._exceptions._ArrayMemoryError": MEMORY_HINT,
    "pyarrow.lib.ArrowMemoryError": MEMORY_HINT,
    "torch.OutOfMemoryError": _GPU_HINT,
    "torch.cuda.OutOfMemoryError": _GPU_HINT,
    "concurrent.futures.process.BrokenProcessPool": _POOL_HINT,
    "joblib.externals.loky.process_executor.TerminatedWorkerError": _POOL_HINT,
    "joblib.externals.loky.process_executor.BrokenProcessPool": _POOL_HINT,
}
_GPU_FULL = (
    "no memory of the GPU is left: nvidia-smi shows who holds it; else a smaller batch, fewer rows, or an instance with"
    " more of it"
)
_NO_THREAD = (
    "no more processes or threads can be started: use fewer workers or threads, or raise the limit (ulimit -u,"
    " docker run --pids-limit)"
)
_OTHER_TORCH = "a package was built for another version of torch: install the one that belongs to this version"
# What C++ says, the kernel and the allocators, which have no exception of Python's; the first that is found counts.
_WORDS = (
    # As torch says it where it is not its own allocator that fails, and XGBoost.
    (re.compile("CUDA error: out of memory|cudaErrorMemoryAllocation"), _GPU_FULL),
    # In /dev/shm torch names its files `torch_PID_NUMBER_NUMBER`.
    (
        re.compile(
            r"killed by signal: Bus error|bus error encountered in worker|file </torch_\d|/dev/shm/"
            r"|unable to (?:open|resize|mmap|allocate) shared memory|insufficient shared memory"
        ),
        SHARED_MEMORY_HINT,
    ),
    (re.compile("std::bad_alloc|[Cc]annot allocate memory|Out of memory: malloc"), MEMORY_HINT),
    (
        re.compile(
            "can't start new thread|Failed to launch worker thread|Thread creation failed|pthread_create"
            r"|(?:fork: (?:retry: )?|what\(\):  )Resource temporarily unavailable"
        ),
        _NO_THREAD,
    ),
    (re.compile("undefined symbol: _ZNK?(?:2at|3c10|5torch)"), _OTHER_TORCH),
    (
        re.compile(r"version [`']GLIBC(?:XX)?_[\d.]+' not found"),
        "a package was compiled for a newer Linux than the image has: take a wheel (manylinux), or a newer base image",
    ),
    (
        re.compile(r"DataLoader worker \(pid \d+\) is killed by signal: Killed"),
        "often the kernel ends it, for memory: each worker holds data of its own. Use fewer, or a larger instance",
    ),
    (
        re.compile("DataLoader worker .{0,40} is killed by signal: (?:Segmentation|Aborted|Illegal)"),
        "a native library crashed in the worker: num_workers=0 and PYTHONFAULTHANDLER show where",
    ),
    (
        re.compile("DataLoader worker .{0,40} exited unexpectedly"),
        "a data loader's worker left without an exception (sys.exit, os._exit?): num_workers=0 shows where",
    ),
)
_NO_SPACE = "the disk is full: ask for a larger VolumeSizeInGB, or write less (fewer checkpoints kept)"

_NO_LIBRARY = ": cannot open shared object file"
#: Debian's packages of system libraries that Python packages expect, by how a library's name begins.
_PACKAGES = {
    "libGL.so": "libgl1",
    "libGLU.so": "libglu1-mesa",
    "libEGL.so": "libegl1",
    "libSM.so": "libsm6",
    "libX11.so": "libx11-6",
    "libXext.so": "libxext6",
    "libXrender.so": "libxrender1",
    "libglib-2.0.so": "libglib2.0-0",
    "libgthread-2.0.so": "libglib2.0-0",
    "libgomp.so": "libgomp1",
    "libgfortran.so": "libgfortran5",
    "libopenblas.so": "libopenblas0",
    "libsndfile.so": "libsndfile1",
    "libsox.so": "libsox3",
    "libavcodec.so": "ffmpeg",
    "libavutil.so": "ffmpeg",
    "libmpi.so": "openmpi-bin",
    "libodbc.so": "unixodbc",
    "libpq.so": "libpq5",
    "libxml2.so": "libxml2",
    "libgdal.so": "gdal-bin",
    "libgeos_c.so": "libgeos-c1v5",
    "libhdf5.so": "libhdf5-dev",
    "libstdc++.so": "libstdc++6",
}
_DRIVER = ("libcuda.so", "libnvidia-")
_CUDA = (
    *("libcudart", "libcublas", "libcudnn", "libcufft", "libcurand", "libcusolver", "libcusparse", "libnccl"),
    *("libnvrtc", "libnvToolsExt", "libnvJitLink", "libcupti"),
)
_TORCH = ("libtorch", "libc10", "libshm.so")

#: The modules of AWS's own images: they are in no other.
_TOOLKITS = {
    "sagemaker_training": "the SM_* variables hold what its Environment does; trainbox.hyperparameters,"
    " trainbox.channel and trainbox.model_dir read them",
    "sagemaker_containers": "the SM_* variables hold what its training_env() does; trainbox.hyperparameters,"
    " trainbox.channel and trainbox.model_dir read them",
    "sagemaker_xgboost_container": "trainbox starts the hosts itself: run the bundled script xgboost, or read the"
    " channels with xgboost.DMatrix and the hosts from SM_HOSTS",
    "sagemaker_sklearn_container": "save the model to SM_MODEL_DIR; the bundled script random_forest trains on files",
    "sagemaker_pytorch_container": "RANK, WORLD_SIZE and MASTER_ADDR are set: torch.distributed or trainbox.torch"
    " need nothing else",
    "sagemaker_tensorflow_container": "TF_CONFIG can be made from SM_HOSTS and SM_CURRENT_HOST",
    "sagemaker_mxnet_container": "the hosts are in SM_HOSTS and SM_CURRENT_HOST",
    "sagemaker_inference": "it serves models, which a training script need not import",
    "smdistributed": "torch.distributed with the backend nccl does the same on every instance",
    "smdebug": "trainbox.log writes metrics; the debugger's hooks are only in AWS's images",
}
#: Packages whose names are not those of their modules.
_DISTRIBUTIONS = {
    "sagemaker_sklearn_extension": "sagemaker-scikit-learn-extension",
    "PIL": "pillow",
    "bs4": "beautifulsoup4",
    "cv2": "opencv-python-headless",
    "dateutil": "python-dateutil",
    "dotenv": "python-dotenv",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
_MODULE = re.compile(r"No module named '([\w.]++)'")


def find_hint(cause: Cause, channels: Sequence[str]) -> str:
    """What to do about an exception that many people meet; empty where nothing is known."""
    if cause.exception == "KeyError" and "SM_CHANNEL_" in cause.text:
        name = cause.text.partition("SM_CHANNEL_")[2].partition("'")[0]
        like = did_you_mean(name.lower(), channels)
        return f"the job has no such channel{like}; its channels: {', '.join(channels) or 'none'}"
    if cause.exception.startswith("trainbox.errors."):
        return _NO_SPACE if os.strerror(errno.ENOSPC) in cause.text else ""  # it has its own
    if cause.exception == "ModuleNotFoundError":
        return _of_module(cause.text)
    if _NO_LIBRARY in cause.text:
        return _of_library(cause.text)
    if hint := next((hint for words, hint in _WORDS if words.search(cause.text)), ""):
        return hint
    return _NO_SPACE if os.strerror(errno.ENOSPC) in cause.text else _HINTS.get(cause.exception, "")


def _of_module(text: str) -> str:
    found = _MODULE.search(text)
    name = found[1].partition(".")[0] if found else ""
    if name in _TOOLKITS:
        return f"{name} is only in AWS's own images; {_TOOLKITS[name]}"
    package = _DISTRIBUTIONS.get(name)
    named = f"the package {package}" if package else "the package"
    return f"name {named} in a requirements.txt beside the script, or install it in the image"


def _of_library(text: str) -> str:
    """Which package has a shared library, or why the environment cannot have it."""
    before = text[: text.index(_NO_LIBRARY)].rsplit(maxsplit=1)
    path = before[-1] if before else ""
    name = path.rpartition("/")[2]
    if name.startswith(_DRIVER):
        return (
            f"{name} belongs to the NVIDIA driver, which only instances with GPUs have: use one, or a package for CPUs"
        )
    if name.startswith(_CUDA):
        return f"{name} is of CUDA: a package was built for another version of CUDA, or for GPUs in an image for CPUs"
    if name.startswith(_TORCH):
        return f"{name} is of torch: {_OTHER_TORCH}"
    package = next((package for begins, package in _PACKAGES.items() if name.startswith(begins)), "")
    install = package or f"PACKAGE ('apt-file search {name}' names it)"
    command = f"RUN apt-get update && apt-get install -y {install}"
    return f"the image lacks the system library {name}; in the Dockerfile: {command}"
