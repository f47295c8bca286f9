"""Sign an image and what is attached to it, by a program that others made and keep: SIGN_WITH, or nothing is signed.

    SIGN_WITH=notation SIGN_KEY=arn:aws:signer:REGION:ACCOUNT:/signing-profiles/NAME   AWS Signer's plugin for notation
    SIGN_WITH=cosign SIGN_KEY=awskms:///arn:aws:kms:REGION:ACCOUNT:key/ID              cosign, with a key of AWS KMS

The programs were not there where this was written: tests look at what they are called with, and that the registry has a
signature afterwards.
"""

import shutil
import subprocess
from collections.abc import Mapping

from tools.ci.messages import emit, fail
from tools.ci.registry import Registry

PLUGIN = "com.amazonaws.signer.notation.plugin"
#: What each program attaches: https://github.com/notaryproject/specifications and
#: https://github.com/sigstore/cosign/blob/main/specs/BUNDLE_SPEC.md.
ARTIFACTS = {
    "notation": ("application/vnd.cncf.notary.signature",),
    "cosign": (
        "application/vnd.dev.sigstore.bundle.v0.3+json",
        "application/vnd.dev.cosign.artifact.sig.v1+json",
    ),
}


def plan(env: Mapping[str, str]) -> tuple[str, str] | None:
    """The program and the key; None where nothing is to be signed."""
    program, key = env.get("SIGN_WITH") or "", env.get("SIGN_KEY") or ""
    if not program:
        if key:
            fail("SIGN_KEY is set, and SIGN_WITH is not", f"SIGN_WITH is one of {', '.join(ARTIFACTS)}")
        return None
    if program not in ARTIFACTS:
        fail(f"SIGN_WITH: found {program!r}", f"one of {', '.join(ARTIFACTS)}; or leave it away, and nothing is signed")
    if not key:
        fail(f"SIGN_WITH={program} and no SIGN_KEY", "a signing profile's ARN for notation, a KMS key's URI for cosign")
    return program, key


def command(program: str, key: str, reference: str) -> list[str]:
    """Sign what a digest names, and attach the signature as a referrer."""
    if program == "notation":
        return ["notation", "sign", "--plugin", PLUGIN, "--id", key, reference]
    return ["cosign", "sign", "--yes", "--key", key, "--registry-referrers-mode=oci-1-1", reference]


def look(env: Mapping[str, str]) -> None:
    """Fail before anything is pushed where signing cannot work."""
    planned = plan(env)
    if planned and shutil.which(planned[0]) is None:
        fail(f"SIGN_WITH={planned[0]}, and there is no such program here", "install it in the build's image")


def sign(registry: Registry, repository: str, digests: tuple[str, ...], env: Mapping[str, str]) -> bool:
    """Sign each of these, or say that they are not signed.

    Returns:
        Whether they are signed.
    """
    planned = plan(env)
    if planned is None:
        emit("warning: not signed: SIGN_WITH is not set. Only the registry's own rights say who made this image")
        return False
    program, key = planned
    for digest in digests:
        if signed_by(registry, repository, digest, program):
            continue
        reference = f"{registry.place}/{repository}@{digest}"
        done = subprocess.run(command(program, key, reference), capture_output=True, text=True, check=False)
        if done.returncode:
            fail(f"{program} did not sign {reference}: {done.stderr.strip()[-1000:]}", "may the role use the key?")
        if not signed_by(registry, repository, digest, program):
            fail(f"{program} ended with 0, and {reference} has no signature", "is the signature in another registry?")
        emit(f"signed by {program}: {reference}")
    return True


def signed_by(registry: Registry, repository: str, digest: str, program: str) -> bool:
    """Whether a signature of this kind is there. That it is genuine, `notation verify` and `cosign verify` say."""
    return any(each.get("artifactType") in ARTIFACTS[program] for each in registry.referrers(repository, digest))
