"""A key is 32 bytes however it is written, and a malformed one is refused without being repeated."""

import base64
from pathlib import Path

import pytest

from trainbox.contract.credentials.checkpoint_keys import CHECKPOINT_KEY, read_checkpoint_keys
from trainbox.contract.credentials.references import fill_in_variables
from trainbox.contract.credentials.secrets import is_secret
from trainbox.contract.job import read_job
from trainbox.errors import ContractError

KEY = bytes(range(0xE0, 0x100))
OTHER = bytes(range(32))


@pytest.mark.parametrize(
    "text",
    [
        KEY.hex(),
        KEY.hex().upper(),
        base64.b64encode(KEY).decode(),
        base64.b64encode(KEY).decode().rstrip("="),
        base64.urlsafe_b64encode(KEY).decode(),
        f" {KEY.hex()}\n",
    ],
)
def test_a_key_may_be_written_in_each_usual_way(text: str) -> None:
    assert read_checkpoint_keys({CHECKPOINT_KEY: text}) == (KEY,)


def test_several_keys_keep_their_order_and_no_variable_is_no_key() -> None:
    both = f"{OTHER.hex()}, {base64.b64encode(KEY).decode()}"
    assert read_checkpoint_keys({CHECKPOINT_KEY: both}) == (OTHER, KEY)
    assert read_checkpoint_keys({}) == read_checkpoint_keys({CHECKPOINT_KEY: ""}) == ()


@pytest.mark.parametrize(
    "text", ["hunter2", KEY.hex()[:-2], KEY.hex() + "00", "é" * 64, "*" * 44, " ", ",", f"{KEY.hex()},", "\ud800"]
)
def test_what_is_no_key_ends_the_job_before_the_script_and_is_not_repeated(text: str, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=f"the variable {CHECKPOINT_KEY}: .*is not 32 bytes") as refused:
        read_job(tmp_path, {CHECKPOINT_KEY: text})
    assert "openssl rand -hex 32" in refused.value.hint
    assert len(text.strip(" ,")) < 7 or text.strip() not in str(refused.value)


def test_a_key_counts_as_a_secret_wherever_variables_are_shown(tmp_path: Path) -> None:
    assert is_secret(CHECKPOINT_KEY)
    job = read_job(tmp_path, {CHECKPOINT_KEY: KEY.hex()})
    assert KEY.hex() in job.secrets
    assert KEY.hex() not in repr(job.settings)


def test_a_key_may_be_a_reference_to_a_secret(tmp_path: Path) -> None:
    reference = "{{resolve:secretsmanager:checkpoints}}"
    filled = fill_in_variables({CHECKPOINT_KEY: reference}, {reference: KEY.hex()}, ())
    assert read_checkpoint_keys(filled) == (KEY,)
    assert KEY.hex() in read_job(tmp_path, filled).secrets
