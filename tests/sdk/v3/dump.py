"""Writes down what a script is given; then it fails, or goes on until it is told to stop, if its arguments say so."""

import json
import os
import sys
import time

import trainbox


def main() -> None:
    """Leave `HOST.json` in the model directory, then end as the arguments say."""
    given = {"arguments": sys.argv[1:], "variables": dict(os.environ), "parent": os.getppid()}
    trainbox.save(f"{os.environ['SM_CURRENT_HOST']}.json", json.dumps(given))
    if "--fail" in sys.argv:
        raise ValueError("the loss is NaN at step 3")
    if "--until-stopped" in sys.argv:
        go_on()


def go_on() -> None:
    """Work until SIGTERM, then save."""
    print("from the first step", flush=True)
    step = 0
    while not trainbox.stop_requested():
        step += 1
        time.sleep(0.05)
    store = trainbox.checkpoints()
    with store.writing(step) as directory:
        (directory / "state").write_text(str(step))
    found = store.latest()  # which verifies it
    trainbox.save("checkpoint", f"{found.step if found else 0} of {step}")


if __name__ == "__main__":
    main()
