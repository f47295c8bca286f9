"""Give an image one time, so that two builds have one id: `settle.py IMAGE EPOCH`.

A builder that does not know SOURCE_DATE_EPOCH, as that of Docker 20.10, writes when it ran into the image's config. The
engine is given the same config with one time; it has all layers already and needs none of them again.
"""

import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any


def settled(about: Mapping[str, Any], steps: Sequence[tuple[int, str]], created: str) -> bytes:
    """Return the config of an image in which everything was made at one time, always as the same bytes.

    Args:
        about: What `docker image inspect` says.
        steps: The bytes and the command of each step, the first one first.
        created: The time.

    Raises:
        ValueError: The steps that made bytes are not as many as the layers, so that nobody knows which step made which.
    """
    layers = about["RootFS"]["Layers"]
    made = sum(size > 0 for size, _ in steps)
    if made != len(layers):
        raise ValueError(f"{made} steps made something, and there are {len(layers)} layers")
    history = [
        {"created": created, "created_by": command, **({} if size else {"empty_layer": True})}
        for size, command in steps
    ]
    config = {
        "architecture": about["Architecture"],
        "config": about["Config"],
        "created": created,
        "history": history,
        "os": about["Os"],
        "rootfs": {"type": about["RootFS"]["Type"], "diff_ids": layers},
    }
    if about.get("Variant"):
        config["variant"] = about["Variant"]
    return json.dumps(config, sort_keys=True, separators=(",", ":")).encode()


def archive_of(config: bytes, image: str) -> bytes:
    """Return what `docker load` takes for an image whose layers the engine has."""
    layers = [f"{number}/layer.tar" for number, _ in enumerate(json.loads(config)["rootfs"]["diff_ids"])]
    manifest = [{"Config": "config.json", "RepoTags": [image], "Layers": layers}]
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for name, content in (("config.json", config), ("manifest.json", json.dumps(manifest).encode())):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return written.getvalue()


def ask(*arguments: str, given: bytes | None = None) -> str:
    """Return what docker says."""
    return subprocess.run(["docker", *arguments], input=given, stdout=subprocess.PIPE, check=True).stdout.decode()


def main() -> None:
    """Settle one image."""
    image, epoch = sys.argv[1:]
    created = datetime.fromtimestamp(int(epoch), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    (about,) = json.loads(ask("image", "inspect", image))
    if about["Created"] == created:
        return
    shown = ask("history", "--no-trunc", "--human=false", "--format", "{{.Size}} {{json .CreatedBy}}", image)
    steps = [line.split(" ", 1) for line in reversed(shown.splitlines())]
    try:
        config = settled(about, [(int(size), json.loads(command)) for size, command in steps], created)
    except ValueError as error:
        print(f"settle: {image} keeps the time of this build: {error}", file=sys.stderr)
        return
    ask("load", "--quiet", given=archive_of(config, image))
    (after,) = json.loads(ask("image", "inspect", image))
    if after["RootFS"] != about["RootFS"] or after["Created"] != created:
        sys.exit(f"settle: this engine did not take the config of {image}: {after['Id']}")
    # It may have another name by which it is kept.
    subprocess.run(["docker", "rmi", about["Id"]], capture_output=True, check=False)


if __name__ == "__main__":
    main()
