"""The key of a job: in which forms it is taken, and that nothing shows it."""

import base64
from pathlib import Path

import pytest

from trainbox.contract.credentials.peer_key import PEER_KEY_VARIABLE, PeerKey, read_peer_key, without_peer_key
from trainbox.contract.credentials.references import fill_in_variables, read_resolved
from trainbox.contract.credentials.secrets import is_secret, redact
from trainbox.contract.job import read_job
from trainbox.errors import ContractError

SECRET = bytes(range(224, 256))  # its base64 has characters in which the two alphabets differ
KEY = PeerKey(SECRET)


@pytest.mark.parametrize(
    "text",
    [
        SECRET.hex(),
        SECRET.hex().upper(),
        f" {SECRET.hex()}\n",
        base64.b64encode(SECRET).decode(),
        base64.urlsafe_b64encode(SECRET).decode(),
        base64.urlsafe_b64encode(SECRET).decode().rstrip("="),
    ],
)
def test_hexadecimal_and_base64_are_taken(text: str) -> None:
    assert read_peer_key({PEER_KEY_VARIABLE: text}) == KEY
    assert read_peer_key({PEER_KEY_VARIABLE: KEY.text}) == KEY


@pytest.mark.parametrize("env", [{}, {PEER_KEY_VARIABLE: ""}, {PEER_KEY_VARIABLE: "  "}])
def test_a_job_without_the_variable_has_no_key(env: dict[str, str]) -> None:
    assert read_peer_key(env) is None


@pytest.mark.parametrize(
    "text",
    [
        "correct horse battery staple",
        SECRET.hex()[:-1],
        SECRET.hex() + "0",
        SECRET.hex()[:-1] + "g",
        base64.b64encode(SECRET[:-1]).decode(),
        base64.b64encode(SECRET).decode() + "\u00e9",
        "\u00e9" * 64,
    ],
)
def test_anything_else_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(ContractError) as raised:
        read_job(tmp_path, {PEER_KEY_VARIABLE: text})
    said = str(raised.value)
    assert f"the variable {PEER_KEY_VARIABLE}: found {len(text)} characters" in said
    assert "openssl rand -hex 32" in said
    assert text not in said
    assert text[:8] not in said


@pytest.mark.parametrize("text", [KEY.text, base64.b64encode(SECRET).decode()])
def test_no_text_of_the_job_shows_the_key(tmp_path: Path, text: str) -> None:
    job = read_job(tmp_path, {PEER_KEY_VARIABLE: text})
    assert job.peer_key == KEY
    assert {text, KEY.text} <= set(job.secrets)  # as it is given, and as it is handed on
    assert repr(KEY) == str(KEY) == f"{KEY}" == "PeerKey(***)"
    assert KEY.text not in repr(job).replace(repr(job.secrets), "")
    assert repr(SECRET) not in repr(job)


def test_the_name_of_the_variable_says_that_it_is_a_secret() -> None:
    assert is_secret(PEER_KEY_VARIABLE)
    assert redact({PEER_KEY_VARIABLE: KEY.text}) == {PEER_KEY_VARIABLE: "***"}


def test_processes_that_prove_nothing_do_not_get_it() -> None:
    assert without_peer_key({"A": "b", PEER_KEY_VARIABLE: KEY.text}) == {"A": "b"}


def test_nor_by_the_values_of_references() -> None:
    """The supervisor tells those that read the request anew what references stand for: not this one."""
    given = {PEER_KEY_VARIABLE: "{{resolve:secretsmanager:job/peers}}"}
    of_hyperparameter = "{{resolve:ssm-secure:/a}}"
    values = {given[PEER_KEY_VARIABLE]: KEY.text, of_hyperparameter: "b"}
    filled = fill_in_variables(given, values, [of_hyperparameter])
    assert read_peer_key(filled) == KEY
    kept = without_peer_key(filled)
    assert read_resolved(kept).values == {of_hyperparameter: "b"}
    assert KEY.text not in str(kept)


def test_a_hyperparameter_of_that_name_is_refused_without_its_value(tmp_path: Path) -> None:
    (tmp_path / "input/config").mkdir(parents=True)
    (tmp_path / "input/config/hyperparameters.json").write_text(f'{{"trainbox_peer_key": "{KEY.text}"}}')
    with pytest.raises(ContractError, match="'trainbox_peer_key': there is no such setting") as raised:
        read_job(tmp_path, {})
    assert KEY.text not in str(raised.value)
