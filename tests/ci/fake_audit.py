"""A pip-audit that says what a test wants of each package.

Without --strict it finds nothing where it could not look, and is content, as the real one.
"""

import stat
import sys
from pathlib import Path

_PROGRAM = """#!{python}
import json, pathlib, sys
options = sys.argv[1:]
answer = {answer!r}
listed = pathlib.Path(options[options.index("--requirement") + 1]).read_text().split()
with open({log!r}, "a") as log: log.write(json.dumps([options, listed]) + "\\n")
said = []
for line in listed:
    name, _, version = line.partition("==")
    known = answer.get(name, [])
    if known is None:
        if "--strict" in options:
            sys.exit(f"ERROR:pip_audit._cli:{{name}}: Dependency not found on PyPI and could not be audited")
        said.append({{"name": name, "skip_reason": "not found"}})
    elif known != "forgotten":
        said.append({{"name": name, "version": version, "vulns": known}})
if {unreachable}: sys.exit("ERROR: could not connect to the vulnerability service")
pathlib.Path(options[options.index("--output") + 1]).write_text(json.dumps({{"dependencies": said}}))
if not any(each.get("vulns") for each in said): print("No known vulnerabilities found", file=sys.stderr)
sys.exit(any(each.get("vulns") for each in said))
"""


def install(directory: Path, answer: object, *, unreachable: bool = False) -> Path:
    """Put it into a directory; where it writes down its options and what it was asked about.

    Args:
        directory: One that PATH has.
        answer: The vulnerabilities of each package; None for one that cannot be looked up, "forgotten" for one that it
            leaves out. Those that are not named have none.
        unreachable: Whether no database answers.
    """
    directory.mkdir(exist_ok=True)
    program, log = directory / "pip-audit", directory / "pip-audit.log"
    program.write_text(_PROGRAM.format(python=sys.executable, answer=answer, log=str(log), unreachable=unreachable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return log
