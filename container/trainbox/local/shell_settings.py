"""Read the settings of trainbox in the environment from which a job is started."""

from collections.abc import Mapping
from pathlib import Path

from trainbox.contract.credentials.checkpoint_keys import CHECKPOINT_KEY
from trainbox.contract.fault_injection import Drill, read_drills
from trainbox.contract.settings import SETTINGS, is_ours, require_known
from trainbox.errors import RunError
from trainbox.local.local_options import LocalOptions

#: A variable that every script of a job has, and what it starts.
_WITHIN_A_JOB = "SM_HOSTS"


def settings_of_shell(env: Mapping[str, str]) -> dict[str, str]:
    """Return the settings in the environment, which count as `--env` does; none if the environment is that of a job.

    Raises:
        ContractError: It says what no trainbox understands.
    """
    if _WITHIN_A_JOB in env:
        return {}
    require_known((), env, Path())
    names = {CHECKPOINT_KEY, *(name.upper() for name in SETTINGS if is_ours(name))}
    return {name: value for name, value in env.items() if name in names and value}


def drills_of(options: LocalOptions, of_shell: str) -> tuple[Drill, ...]:
    """Return the faults to rehearse.

    Args:
        options: Those given as options.
        of_shell: The value of the variable TRAINBOX_DRILL.

    Raises:
        RunError: One is malformed, or given twice.
    """
    try:
        drills = (*options.drills, *(read_drills(of_shell) if of_shell else ()))
    except ValueError:
        raise RunError(f"the variable TRAINBOX_DRILL: found {of_shell!r}, expected 'kill RANK@STEP'") from None
    twice = next((drill for drill in drills if drills.count(drill) > 1), None)
    if twice:
        raise RunError(f"the drill '{twice}' is given twice", hint="give it once: each happens once")
    return drills
