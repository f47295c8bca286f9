"""A `Job` becomes the `SM_*` variables of sagemaker-training 5.1.4, with shell-safe twins beside them."""

import json
import re
from collections.abc import Mapping

import msgspec

from trainbox.contract.job import Job

#: Linux' MAX_ARG_STRLEN: one longer variable makes every `execve` fail with "Argument list too long".
LONGEST_VARIABLE_BYTES = 128 * 1024 - 1
_UNSAFE = re.compile(r"[^A-Z0-9_]")
#: Any of these among the reserved hyperparameters makes the current group a distributed one (sagemaker-training 5.1.4,
#: `get_distribution_instance_groups_from_resource_config`).
DISTRIBUTION_SWITCHES = (
    "sagemaker_mpi_enabled",
    "sagemaker_parameter_server_enabled",
    "sagemaker_distributed_dataparallel_enabled",
    "sagemaker_pytorch_ddp_enabled",
    "sagemaker_pytorch_xla_multi_worker_enabled",
    "sagemaker_multi_worker_mirrored_strategy_enabled",
    "sagemaker_torch_distributed_enabled",
)
#: Reserved hyperparameters that are not framework parameters (sagemaker-training's `SAGEMAKER_HYPERPARAMETERS`).
_NOT_FRAMEWORK = frozenset(
    {
        "sagemaker_program",
        "sagemaker_submit_directory",
        "sagemaker_enable_cloudwatch_metrics",
        "sagemaker_region",
        "sagemaker_container_log_level",
        "sagemaker_job_name",
        "default_user_module_name",
        "_tuning_objective_metric",
        "sagemaker_s3_output",
    }
)
DEFAULT_LOG_LEVEL = 20


#: By which CUDA shows a program some GPUs alone.
GPU_VARIABLE = "CUDA_VISIBLE_DEVICES"


class Machine(msgspec.Struct, frozen=True):
    """What the host has, as far as the variables tell it."""

    cpus: int = 1
    gpus: int = 0
    neurons: int = 0
    smddprun: bool = False
    smddpmprun: bool = False
    #: Network interfaces by name; None where they cannot be listed.
    interfaces: tuple[str, ...] | None = None
    #: Whether there is an Elastic Fabric Adapter and the library that drives it.
    efa: bool = False
    #: Which of the Python modules that a launcher needs can be imported.
    modules: tuple[str, ...] = ()


class Variables(msgspec.Struct, frozen=True):
    """The variables, and what had to be left out with the reason."""

    values: Mapping[str, str]
    notes: tuple[str, ...] = ()


def variables(job: Job, *, entry_point: str | None, env: Mapping[str, str], machine: Machine) -> Variables:
    """The `SM_*` variables of a script.

    Args:
        job: The contract, read.
        entry_point: The program's name as the request gives it (`train.py`), `None` where there is none.
        env: The environment of the container; sagemaker-training passes parts of it on under other names.
        machine: What the host has.
    """
    properties = _properties(job, entry_point, env, machine)
    named: dict[str, object] = {
        "hosts": job.hosts,
        "network_interface_name": job.network_interface,
        "hps": job.hyperparameters,
        "user_entry_point": entry_point,
        "framework_params": properties["additional_framework_parameters"],
        "resource_config": job.resource_config,
        "input_data_config": job.input_data_config,
        "channels": sorted(job.channels),
        "training_env": properties,
        "user_args": job.argv,
    }
    same = (
        *(
            "output_data_dir",
            "current_host",
            "current_instance_type",
            "current_instance_group",
            "model_dir",
            "module_dir",
        ),
        *("current_instance_group_hosts", "instance_groups", "instance_groups_dict", "distribution_instance_groups"),
        *("is_hetero", "module_name", "log_level", "framework_module", "input_dir", "input_config_dir", "output_dir"),
        *("num_cpus", "num_gpus", "num_neurons", "output_intermediate_dir"),
    )
    named |= {name: properties[name] for name in same}
    if properties["topology"]:
        named["topology"] = properties["topology"]
    # In the order of the file: of names that differ only in case the last one wins, as in sagemaker-training.
    named |= {f"channel_{name}": str(job.channels[name].path) for name in job.input_data_config}
    named |= {f"hp_{name}": value for name, value in job.hyperparameters.items()}
    return _usable({f"SM_{name.upper()}": encode(value) for name, value in named.items()})


def encode(value: object) -> str:
    """One value as sagemaker-training writes it (`mapping.to_env_vars`): text as it is, the rest as compact JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _properties(job: Job, entry_point: str | None, env: Mapping[str, str], machine: Machine) -> dict[str, object]:
    """Every public property of sagemaker-training's `Environment`, by name; `SM_TRAINING_ENV` is all of them."""
    framework = {name: value for name, value in job.reserved.items() if _is_framework(name)}
    groups = job.resource_config.get("instance_groups") or []
    by_name = {group["instance_group_name"]: group for group in groups} if isinstance(groups, list) else {}
    distributed = framework.get("sagemaker_distribution_instance_groups", _distributed_groups(job, framework))
    distribution_hosts = _distribution_hosts(job, distributed)
    module_name = "None" if entry_point is None else entry_point
    mp_parameters = env.get("SM_HP_MP_PARAMETERS")
    return {
        "additional_framework_parameters": framework,
        "channel_input_dirs": {name: str(channel.path) for name, channel in job.channels.items()},
        "current_host": job.current_host,
        "current_instance_group": job.instance_group,
        "current_instance_group_hosts": next(
            (list(group.hosts) for group in job.instance_groups if group.name == job.instance_group), []
        ),
        "current_instance_type": job.instance_type,
        "distribution_hosts": distribution_hosts,
        "distribution_instance_groups": distributed,
        "framework_module": env.get("SAGEMAKER_TRAINING_MODULE"),
        "hosts": job.hosts,
        "hyperparameters": job.hyperparameters,
        "input_config_dir": str(job.layout.config_dir),
        "input_data_config": job.input_data_config,
        "input_dir": str(job.layout.input_dir),
        "instance_groups": [group.name for group in job.instance_groups],
        "instance_groups_dict": by_name,
        "is_hetero": len(job.instance_groups) > 1,
        "is_master": job.current_host == (distribution_hosts or list(job.hosts))[0],
        "is_modelparallel_enabled": mp_parameters and mp_parameters != "{}",
        "is_smddpmprun_installed": machine.smddpmprun,
        "is_smddprun_installed": machine.smddprun,
        "job_name": env.get("TRAINING_JOB_NAME"),
        "log_level": job.reserved.get("sagemaker_container_log_level", DEFAULT_LOG_LEVEL),
        "master_hostname": (distribution_hosts or list(job.hosts))[0],
        "model_dir": str(job.layout.model_dir),
        "module_dir": str(job.reserved.get("sagemaker_submit_directory", job.layout.code_dir)),
        "module_name": module_name.removesuffix(".py"),
        "network_interface_name": job.network_interface,
        "num_cpus": machine.cpus,
        "num_gpus": machine.gpus,
        "num_neurons": machine.neurons,
        "output_data_dir": str(job.layout.output_data_dir),
        "output_dir": str(job.layout.output_dir),
        "output_intermediate_dir": str(job.layout.intermediate_dir),
        "resource_config": job.resource_config,
        "topology": job.resource_config.get("topology", []),
        "user_entry_point": entry_point,
    }


def _is_framework(name: str) -> bool:
    return name.startswith("sagemaker_") and name not in _NOT_FRAMEWORK


def _distributed_groups(job: Job, framework: Mapping[str, object]) -> list[str]:
    return [job.instance_group] if any(framework.get(switch) for switch in DISTRIBUTION_SWITCHES) else []


def _distribution_hosts(job: Job, distributed: object) -> list[str]:
    if not job.instance_groups:
        return list(job.hosts)
    names = distributed if isinstance(distributed, list) else []
    return [host for group in job.instance_groups if group.name in names for host in group.hosts]


def _usable(named: Mapping[str, str]) -> Variables:
    """What the system can carry, plus a twin for each name a shell cannot read: `SM_HP_A_B` for `SM_HP_A-B`."""
    values: dict[str, str] = {}
    notes: list[str] = []
    for name, value in named.items():
        if "=" in name:
            notes.append(f"{name.partition('=')[0]}=… is no name of a variable: not set; SM_HPS has the value")
        elif len(name.encode()) + len(value.encode()) + 1 > LONGEST_VARIABLE_BYTES:
            notes.append(
                f"{name} is longer than Linux passes in one variable ({LONGEST_VARIABLE_BYTES} bytes): not set"
            )
        else:
            values[name] = value
    # A twin never takes the place of a variable that has the name by right.
    twins = {_UNSAFE.sub("_", name): value for name, value in values.items() if _UNSAFE.search(name)}
    return Variables(values={**twins, **values}, notes=tuple(notes))
