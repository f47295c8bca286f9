"""References to secrets: as they are read, and what is filled in for them."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainbox.contract.credentials.references import (
    VARIABLE,
    Reference,
    fill_in,
    fill_in_raw,
    find_references,
    is_reference,
    read_reference,
)
from trainbox.contract.job import Job, Wanted, read_job, read_references
from trainbox.errors import ContractError

ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:prod/db-a1b2c3"

READ = {
    "{{resolve:secretsmanager:db}}": Reference("", "secretsmanager", "db"),
    "{{resolve:secretsmanager:prod/db:SecretString:password}}": Reference("", "secretsmanager", "prod/db", "password"),
    "{{resolve:secretsmanager:db:SecretString}}": Reference("", "secretsmanager", "db"),
    "{{resolve:secretsmanager:db:::AWSPREVIOUS}}": Reference("", "secretsmanager", "db", "", "AWSPREVIOUS"),
    "{{resolve:secretsmanager:db:SecretString:k::v-1}}": Reference("", "secretsmanager", "db", "k", "", "v-1"),
    f"{{{{resolve:secretsmanager:{ARN}}}}}": Reference("", "secretsmanager", ARN),
    f"{{{{resolve:secretsmanager:{ARN}:SecretString:k}}}}": Reference("", "secretsmanager", ARN, "k"),
    "{{resolve:ssm:/team/db}}": Reference("", "ssm", "/team/db"),
    "{{resolve:ssm-secure:/team/db:3}}": Reference("", "ssm", "/team/db:3"),
    "{{resolve:ssm-secure:arn:aws:ssm:eu-west-1:123456789012:parameter/db}}": Reference(
        "", "ssm", "arn:aws:ssm:eu-west-1:123456789012:parameter/db"
    ),
}
NONE = [
    "{{resolve:}}",
    "{{resolve:secretsmanager}}",
    "{{resolve:secretsmanager:}}",
    "{{resolve:secretsmanager:db:password}}",
    "{{resolve:secretsmanager:db:SecretString:k:stage:version}}",
    "{{resolve:secretsmanager:db:SecretString:k:::}}",
    "{{resolve:secretsmanager:arn:aws:secretsmanager:eu-west-1}}",
    "{{resolve:ssm:/a:b}}",
    "{{resolve:vault:db}}",
]


@pytest.mark.parametrize("text", READ)
def test_references_are_read_as_cloudformation_reads_them(text: str) -> None:
    found = read_reference(text, "here")
    expected = READ[text]
    assert (found.service, found.name, found.json_key, found.stage, found.version) == (
        expected.service,
        expected.name,
        expected.json_key,
        expected.stage,
        expected.version,
    )
    assert found.text == text
    assert is_reference(text)
    assert found.region == ("eu-west-1" if "arn:" in text else "")


@pytest.mark.parametrize("text", NONE)
def test_what_begins_as_a_reference_and_is_none_ends_the_job(tmp_path: Path, text: str) -> None:
    with pytest.raises(ContractError, match="is no reference to a secret") as caught:
        wanted(tmp_path, {"password": text})
    assert "SecretString:JSON-KEY" in caught.value.hint
    assert "key 'password'" in caught.value.message


PIECES = ["{{resolve:", "}}", "ssm", "secretsmanager", ":", "arn", "a", "/", "SecretString"]


@given(st.lists(st.sampled_from(PIECES), max_size=9))
def test_whatever_a_text_is_it_is_read_or_refused(pieces: list[str]) -> None:
    text = "".join(pieces)
    try:
        found = [*find_references(text, "here")]
    except ContractError:
        return
    assert [each.text for each in found] == re.findall(r"\{\{resolve:[^{}]*\}\}", text)
    assert all(each.name for each in found)


def test_one_without_an_end_is_none(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="has no end"):
        wanted(tmp_path, {"password": "{{resolve:ssm:/a"})
    with pytest.raises(ContractError, match="the variable DB_PASSWORD"):
        wanted(tmp_path, {}, DB_PASSWORD="{{resolve:ssm:/a}")


def wanted(root: Path, hyperparameters: dict[str, str], **env: str) -> Wanted:
    job(root, hyperparameters)
    return read_references(root, env)


def job(root: Path, hyperparameters: dict[str, str], **env: str) -> Job:
    (root / "input/config").mkdir(parents=True, exist_ok=True)
    (root / "input/config/hyperparameters.json").write_text(json.dumps(hyperparameters))
    return read_job(root, env)


def test_references_are_found_in_hyperparameters_and_variables_each_once(tmp_path: Path) -> None:
    given = {
        "password": "{{resolve:ssm:/a}}",
        "url": "postgres://u:{{resolve:ssm:/a}}@{{resolve:ssm:/host}}/d",
        "db": json.dumps({"inner": ["{{resolve:secretsmanager:db}}"]}),
        "text": json.dumps("{{resolve:ssm:/quoted}}"),
    }
    found = job(tmp_path, given)
    wanted = read_references(tmp_path, {"WANDB_API_KEY": "{{resolve:ssm:/wandb}}", "AWS_REGION": "eu-west-1"})
    assert [each.name for each in wanted.references] == ["/a", "/host", "db", "/quoted", "/wandb"]
    assert wanted.region == "eu-west-1"
    assert len(wanted.of_hyperparameters) == 4
    assert found.secret_names == {"password", "url", "db", "text"}
    assert found.hyperparameters["password"] == "{{resolve:ssm:/a}}"


def test_what_is_filled_in_is_text_whatever_it_looks_like(tmp_path: Path) -> None:
    values = {"{{resolve:ssm:/a}}": "01234567890", "{{resolve:secretsmanager:db}}": 'a "quoted" \\ one', "x": "y"}
    found = job(
        tmp_path,
        {
            "password": "{{resolve:ssm:/a}}",
            "url": "postgres://u:{{resolve:ssm:/a}}@h/d",
            "db": json.dumps({"inner": ["{{resolve:secretsmanager:db}}"], "n": 1}),
            "eta": "0.1",
        },
        **{VARIABLE: json.dumps({"values": values, "hide": ["MY_KEY"]})},
        MY_KEY="of-a-variable",
    )
    assert "of-a-variable" in found.secrets
    assert found.hyperparameters == {
        "password": "01234567890",
        "url": "postgres://u:01234567890@h/d",
        "db": {"inner": ['a "quoted" \\ one'], "n": 1},
        "eta": 0.1,
    }
    assert found.raw_hyperparameters["password"] == "01234567890"
    assert json.loads(str(found.raw_hyperparameters["db"])) == found.hyperparameters["db"]
    assert {'a "quoted" \\ one', "postgres://u:01234567890@h/d"} <= set(found.secrets)
    assert found.secret_names == {"password", "url", "db", "MY_KEY"}


def test_a_value_within_quotes_is_read_as_what_it_is() -> None:
    values = {"{{resolve:ssm:/a}}": '"quoted"'}
    assert fill_in("{{resolve:ssm:/a}}", values) == '"quoted"'
    assert json.loads(str(fill_in_raw("{{resolve:ssm:/a}}", values))) == '"quoted"'


def test_a_reference_within_a_secret_is_only_text(tmp_path: Path) -> None:
    values = {"{{resolve:ssm:/a}}": "{{resolve:nonsense"}
    found = job(tmp_path, {"password": "{{resolve:ssm:/a}}"}, **{VARIABLE: json.dumps({"values": values})})
    assert found.hyperparameters["password"] == "{{resolve:nonsense"


@pytest.mark.parametrize("text", ["{", "[]", '{"values": {"a": 1}}'])
def test_the_variable_of_the_supervisor_is_not_for_others(tmp_path: Path, text: str) -> None:
    with pytest.raises(ContractError, match="TRAINBOX_RESOLVED"):
        job(tmp_path, {}, **{VARIABLE: text})


def test_names_to_hide_are_those_of_the_job(tmp_path: Path) -> None:
    found = job(
        tmp_path,
        {"endpoint": "of-somebody", "eta": "1", "trainbox_hide": "endpoint, MY_VARIABLE"},
        MY_VARIABLE="12345678x",
    )
    assert {"of-somebody", "12345678x"} <= set(found.secrets)
    assert found.secret_names == {"endpoint", "MY_VARIABLE"}
    with pytest.raises(ContractError, match="no hyperparameter and no variable 'endpiont' - did you mean 'endpoint'"):
        job(tmp_path, {"endpoint": "x", "trainbox_hide": "endpiont"})
