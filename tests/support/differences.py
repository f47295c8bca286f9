"""What trainbox does otherwise than sagemaker-training 5.1.4, on purpose; `docs/differences.md` says why, row by row.

An entry turns the incumbent's behaviour into ours: by what it is asked (`ask`), or by what it answers (`amend`). All
together make the two equal; without any one of them they differ on its example, so none can outlive its reason.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping

import msgspec

from tests.support.sides import CHANNELS, HYPERPARAMETERS, RESOURCES, Answer, Contract, contract
from trainbox.system.machine import read_machine

#: Linux' MAX_ARG_STRLEN, with the `=` and the NUL.
_LONGEST = 131072 - 2
_TEXT_SETTINGS = ("sagemaker_program", "sagemaker_job_name", "sagemaker_region")
#: Far beyond what any Python parses; where each gives up differs between its versions.
_TOO_DEEP = "[" * 50_000 + "]" * 50_000


class Difference(msgspec.Struct, frozen=True):
    """One entry."""

    example: Contract
    ask: Callable[[Contract], Contract] = lambda given: given
    amend: Callable[[Contract, Answer], Answer] = lambda _given, answer: answer


def apply(differences: Mapping[str, Difference], given: Contract, ask: Callable[[Contract], Answer]) -> Answer:
    """What the incumbent would answer if it did as we do in the differences named."""
    asked = given
    for difference in differences.values():
        asked = difference.ask(asked)
    answer = ask(asked)
    for difference in differences.values():
        answer = difference.amend(given, answer)
    return answer


def _with_variables(answer: Answer, changed: Mapping[str, str]) -> Answer:
    return msgspec.structs.replace(answer, variables={**answer.variables, **changed})


def _without_variables(answer: Answer, unwanted: Callable[[str, str], bool]) -> Answer:
    kept = {name: value for name, value in answer.variables.items() if not unwanted(name, value)}
    return msgspec.structs.replace(answer, variables=kept)


def _with_hyperparameters(given: Contract, values: Mapping[str, object]) -> Contract:
    return given.with_file(HYPERPARAMETERS, values) if values != given.read(HYPERPARAMETERS) else given


# -- files ------------------------------------------------------------------------------------------------------------


def _write_absent_files(given: Contract) -> Contract:
    defaults = {
        HYPERPARAMETERS: "{}",
        RESOURCES: '{"current_host": "algo-1", "hosts": ["algo-1"]}',
        CHANNELS: "{}",
    }
    return msgspec.structs.replace(given, files={**defaults, **given.files})


# -- the program and other settings -----------------------------------------------------------------------------------


def _forget_the_program_of_the_environment(given: Contract) -> Contract:
    named = given.hyperparameters().get("sagemaker_program")
    return given if _is_empty(named) else given.without_variables("SAGEMAKER_PROGRAM")


def _is_empty(value: object) -> bool:
    return value is None or value == ""


def _accept_any_name(given: Contract, answer: Answer) -> Answer:
    named = given.hyperparameters().get("sagemaker_program")
    is_named = not _is_empty(named) or given.env.get("SAGEMAKER_PROGRAM")
    return answer.without_error("program: ClientError") if is_named else answer


def _make_settings_text(given: Contract) -> Contract:
    """`123` and `true` become text; `null` becomes nothing."""
    values = given.read(HYPERPARAMETERS)
    for name in _TEXT_SETTINGS:
        decoded = given.hyperparameters().get(name, "")
        if decoded is None:
            del values[name]
        elif not isinstance(decoded, str):
            values[name] = json.dumps(str(decoded))
    return _with_hyperparameters(given, values)


def _forget_the_log_level_of_the_environment(given: Contract) -> Contract:
    return given.without_variables("SAGEMAKER_CONTAINER_LOG_LEVEL")


def _log_at_any_level(_given: Contract, answer: Answer) -> Answer:
    return answer.without_error("logging: TypeError").without_error("logging: ValueError")


def _take_the_region_of_the_environment(given: Contract, answer: Answer) -> Answer:
    if not _is_empty(given.hyperparameters().get("sagemaker_region")):
        return answer
    return _with_variables(answer, {"SAGEMAKER_REGION": given.env.get("AWS_REGION", "")})


# -- hyperparameters --------------------------------------------------------------------------------------------------


def _reserve_our_names(given: Contract) -> Contract:
    values = given.read(HYPERPARAMETERS)
    kept = {name: value for name, value in values.items() if not name.startswith("trainbox_")}
    kept.pop("processes_per_host", None)
    return _with_hyperparameters(given, kept)


def _keep_deep_values_as_text(given: Contract) -> Contract:
    values = given.read(HYPERPARAMETERS)
    return _with_hyperparameters(
        given, {name: json.dumps(value) if value == _TOO_DEEP else value for name, value in values.items()}
    )


def _name_groups_by_lists_only(given: Contract) -> Contract:
    """Any other value is passed on to the script as it is, and names no group."""
    values = given.read(HYPERPARAMETERS)
    if _is_no_list(given):
        values["sagemaker_distribution_instance_groups"] = []
    return _with_hyperparameters(given, values)


def _pass_on_what_names_no_group(given: Contract, answer: Answer) -> Answer:
    if not _is_no_list(given) or answer.errors:
        return answer
    groups = given.hyperparameters()["sagemaker_distribution_instance_groups"]
    parameters = json.loads(answer.variables["SM_FRAMEWORK_PARAMS"])
    parameters["sagemaker_distribution_instance_groups"] = groups
    properties = json.loads(answer.variables["SM_TRAINING_ENV"])
    properties |= {"additional_framework_parameters": parameters, "distribution_instance_groups": groups}
    text = "" if groups is None else groups if isinstance(groups, str) else _compact(groups)
    return _with_variables(
        answer,
        {
            "SM_FRAMEWORK_PARAMS": _compact(parameters),
            "SM_TRAINING_ENV": _compact(properties),
            "SM_DISTRIBUTION_INSTANCE_GROUPS": text,
        },
    )


def _is_no_list(given: Contract) -> bool:
    return not isinstance(given.hyperparameters().get("sagemaker_distribution_instance_groups", []), list)


def _compact(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


# -- variables --------------------------------------------------------------------------------------------------------


def _add_twins(_given: Contract, answer: Answer) -> Answer:
    named = {name: value for name, value in answer.variables.items() if name.startswith("SM_")}
    twins = {re.sub("[^A-Z0-9_]", "_", name): value for name, value in named.items()}
    return _with_variables(answer, {**twins, **named})


def _leave_out_what_is_no_name(_given: Contract, answer: Answer) -> Answer:
    # Python refuses to set them, so they are not among the answer's variables either.
    is_one = any("=" in name for name in _names(_given))
    return answer.without_error("environment: ValueError") if is_one else answer


def _names(given: Contract) -> Iterator[str]:
    yield from given.read(HYPERPARAMETERS)


def _leave_out_what_is_too_long(_given: Contract, answer: Answer) -> Answer:
    def is_too_long(name: str, value: str) -> bool:
        return len(name.encode()) + len(value.encode(errors="surrogatepass")) > _LONGEST

    shorter = _without_variables(answer, is_too_long)
    return shorter.without_error("exec: OSError") if shorter != answer else answer


def _count_neurons(_given: Contract, answer: Answer) -> Answer:
    if "SM_TRAINING_ENV" not in answer.variables:
        return answer
    neurons = read_machine().neurons
    properties = _compact({**json.loads(answer.variables["SM_TRAINING_ENV"]), "num_neurons": neurons})
    return _with_variables(answer, {"SM_NUM_NEURONS": str(neurons), "SM_TRAINING_ENV": properties})


def _search_the_code_directory_only(given: Contract, answer: Answer) -> Answer:
    model_dir = answer.variables.get("SM_MODEL_DIR", "")
    code_dir = f"{model_dir.removesuffix('model')}code"
    return _with_variables(answer, {"PYTHONPATH": ":".join(filter(None, [code_dir, given.env.get("PYTHONPATH", "")]))})


def _hosts(given: Contract) -> tuple[list[str], str]:
    """The hosts that train together, and this one."""
    resources = given.read(RESOURCES) or {"hosts": ["algo-1"], "current_host": "algo-1"}
    every, groups = resources.get("hosts"), resources.get("instance_groups") or []
    asked = given.hyperparameters().get("sagemaker_distribution_instance_groups")
    assert isinstance(every, list)
    assert isinstance(groups, list)
    named = [group for group in groups if isinstance(asked, list) and group["instance_group_name"] in asked]
    hosts = [host for group in named for host in group["hosts"] if host in every]
    return list(dict.fromkeys(hosts)) or every, str(resources["current_host"])


def _say_where_ranks_meet(given: Contract, answer: Answer) -> Answer:
    every = given.read(RESOURCES).get("hosts", ["algo-1"])
    assert isinstance(every, list)
    address = _hosts(given)[0][0] if len(every) > 1 else "127.0.0.1"
    return _with_variables(answer, {"MASTER_ADDR": address, "MASTER_PORT": "29400"})


def _number_the_ranks(given: Contract, answer: Answer) -> Answer:
    """One process on each host, as all contracts here ask for."""
    hosts, current = _hosts(given)
    if len(hosts) == 1 or current not in hosts:
        return answer
    rank, size = str(hosts.index(current)), str(len(hosts))
    ranks = {"RANK": rank, "GROUP_RANK": rank, "NODE_RANK": rank, "WORLD_SIZE": size, "GROUP_WORLD_SIZE": size}
    one_device = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"} if read_machine().gpus <= 1 else {}
    return _with_variables(answer, {**ranks, **one_device})


def _name_the_network(given: Contract, answer: Answer) -> Answer:
    machine = read_machine()
    resources = given.read(RESOURCES)
    name = str(resources.get("network_interface_name", "eth0"))
    hosts = resources.get("hosts")
    efa = {"FI_PROVIDER": "efa", "FI_EFA_USE_DEVICE_RDMA": "1", "RDMAV_FORK_SAFE": "1"} if machine.efa else {}
    of_gloo = name if isinstance(hosts, list) and len(hosts) > 1 else "lo"
    names = {"NCCL_SOCKET_IFNAME": name, "GLOO_SOCKET_IFNAME": of_gloo}
    there = {
        key: name for key, name in names.items() if name and (machine.interfaces is None or name in machine.interfaces)
    }
    return _with_variables(answer, {**there, **efa})


def _add_ours(given: Contract, answer: Answer) -> Answer:
    defaults = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", "TRAINBOX_GRACE_SECONDS": "100.0"}
    added = {name: value for name, value in defaults.items() if name not in given.env}
    if model := answer.variables.get("SM_MODEL_DIR"):
        added["TRAINBOX_ROOT"] = os.path.dirname(model)  # noqa: PTH120 - the text as it is
    return _with_variables(answer, added)


# -- the table --------------------------------------------------------------------------------------------------------

#: The order matters where two touch the same variable: what is asked first, what is left out last.
DIFFERENCES: Mapping[str, Difference] = {
    "absent-files": Difference(Contract({}, {"SAGEMAKER_PROGRAM": "train.py"}), ask=_write_absent_files),
    "program-of-the-job": Difference(
        contract(SAGEMAKER_PROGRAM="left_over.py"), ask=_forget_the_program_of_the_environment
    ),
    "program-names": Difference(contract({"sagemaker_program": "my train.py"}), amend=_accept_any_name),
    "settings-as-text": Difference(contract({"sagemaker_job_name": "20261101"}), ask=_make_settings_text),
    "log-level-variable": Difference(
        contract(SAGEMAKER_CONTAINER_LOG_LEVEL="INFO"), ask=_forget_the_log_level_of_the_environment
    ),
    "log-level-names": Difference(contract({"sagemaker_container_log_level": '"INFO"'}), amend=_log_at_any_level),
    "region": Difference(contract(AWS_REGION="eu-central-1"), amend=_take_the_region_of_the_environment),
    "reserved-names": Difference(
        contract({"trainbox_backend": "gloo", "processes_per_host": "1"}), ask=_reserve_our_names
    ),
    "deep-values": Difference(contract({"layers": _TOO_DEEP}), ask=_keep_deep_values_as_text),
    "distribution-groups": Difference(
        contract({"sagemaker_distribution_instance_groups": "7"}),
        ask=_name_groups_by_lists_only,
        amend=_pass_on_what_names_no_group,
    ),
    "neurons": Difference(contract(resources={"current_instance_type": "ml.trn2.48xlarge"}), amend=_count_neurons),
    "python-path": Difference(contract(PYTHONPATH="/opt/program"), amend=_search_the_code_directory_only),
    "added-variables": Difference(contract(), amend=_add_ours),
    "meeting-point": Difference(contract(), amend=_say_where_ranks_meet),
    "ranks": Difference(
        contract(resources={"current_host": "algo-2", "hosts": ["algo-1", "algo-2"]}), amend=_number_the_ranks
    ),
    "network-variables": Difference(contract(resources={"network_interface_name": "lo"}), amend=_name_the_network),
    "names-with-an-equals-sign": Difference(contract({"a=b": "1"}), amend=_leave_out_what_is_no_name),
    "long-variables": Difference(
        contract({f"text{number}": "x" * 60_000 for number in range(3)}), amend=_leave_out_what_is_too_long
    ),
    "shell-safe-twins": Difference(contract({"batch-size": "32", "model.depth": "3"}), amend=_add_twins),
}

#: Differences of the whole `train`, each pinned on both sides by the test of that name in `test_behaviour.py`.
BEHAVIOURS: Mapping[str, str] = {
    "exit-code": "test_the_exit_code_of_the_script_is_the_jobs",
    "failure-reason": "test_the_failure_file_holds_the_exception",
    "sigterm": "test_sigterm_reaches_the_script",
    "stop-exit-code": "test_a_job_that_was_stopped_does_not_pass_for_one_that_is_done_where_the_exit_code_counts",
    "addresses": "test_the_address_of_a_host_that_nobody_dials_is_not_waited_for",
    "whole-lines": "test_a_line_printed_in_parts_stays_one_line",
    "fetched-code-wins": "test_a_submitted_source_wins_over_what_lies_in_the_code_directory",
    "submit-directory-variable": "test_the_variable_sagemaker_submit_directory_counts",
    "secrets": "test_the_log_holds_no_password",
    "references": "test_a_reference_to_a_secret_is_resolved",
    "peer-key": "test_the_key_of_the_job_does_not_reach_a_script_that_has_no_use_for_it",
    "framework-modules": "test_a_framework_module_is_not_run",
    "success-file": "test_no_success_file_is_written",
    "threads": "test_processes_of_one_host_share_its_processors",
    "processors": "test_a_host_counts_the_processors_that_it_may_use",
    "gpus": "test_a_host_counts_the_gpus_that_cuda_shows",
    "malformed-files": "test_a_malformed_file_is_refused_by_name",
    "modules-of-the-images": "test_the_modules_of_the_images_are_not_there",
    "checkpoint-key": "test_a_key_of_checkpoints_that_is_none_is_refused",
    "source-limits": "test_an_archive_of_source_has_limits",
    "read-only-packages": "test_requirements_are_installed_where_the_image_cannot_be_written",
    "plain-http": "test_a_signed_request_goes_to_no_other_machine_without_tls",
    "unknown-settings": "test_a_setting_that_does_not_exist_is_refused",
}
