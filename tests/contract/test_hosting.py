"""What SageMaker says to `serve` is read once, and what is malformed is an error that names the variable."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainbox.contract.hosting import HOSTING_VARIABLES, Batch, Hosting, describe_ignored, read_hosting
from trainbox.contract.layout import Layout
from trainbox.errors import ContractError

MALFORMED = (
    ("SAGEMAKER_BIND_TO_PORT", "0"),
    ("SAGEMAKER_BIND_TO_PORT", "65536"),
    ("SAGEMAKER_BIND_TO_PORT", "٨٠٨٠"),
    ("SAGEMAKER_SAFE_PORT_RANGE", "9000-8000"),
    ("SAGEMAKER_SAFE_PORT_RANGE", "9000"),
    ("SAGEMAKER_MODEL_SERVER_WORKERS", "-1"),
    ("SAGEMAKER_MODEL_SERVER_TIMEOUT", "nan"),
    ("SAGEMAKER_STARTUP_TIMEOUT", "inf"),
    ("SAGEMAKER_BATCH", "maybe"),
    ("SAGEMAKER_MULTI_MODEL", "1"),
    ("SAGEMAKER_INFERENCE_OUTPUT", "probability,,raw_score"),
    ("TRAINBOX_MAX_BODY_MB", "1025"),
    ("TRAINBOX_SERVE_CODE", "ask"),
)


def test_an_endpoint_without_variables_has_the_defaults_of_sagemaker() -> None:
    hosting = read_hosting({})

    assert hosting == Hosting(layout=Layout())
    assert (hosting.port, hosting.timeout_seconds, hosting.max_body_bytes) == (8080, 60.0, 25 * 2**20)


def test_a_batch_transform_job_has_limits_of_its_own() -> None:
    hosting = read_hosting(
        {
            "SAGEMAKER_BATCH": "True",  # as the local mode of the SDKs spells it
            "SAGEMAKER_BATCH_STRATEGY": "MultiRecord",
            "SAGEMAKER_MAX_PAYLOAD_IN_MB": "0",
            "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": "4",
        }
    )

    assert hosting.batch == Batch("MULTI_RECORD", 0, 4)
    assert (hosting.timeout_seconds, hosting.max_body_bytes) == (600.0, 0)


def test_our_limit_of_a_body_wins_over_the_built_ins() -> None:
    theirs = {"MAX_CONTENT_LENGTH": "1000"}

    assert read_hosting(theirs).max_body_bytes == 1000
    assert read_hosting({**theirs, "TRAINBOX_MAX_BODY_MB": "2"}).max_body_bytes == 2 * 2**20


def test_variables_of_other_servers_are_told_with_what_to_set_instead() -> None:
    env = {"SAGEMAKER_TS_MAX_WORKERS": "4", "TS_MAX_REQUEST_SIZE": "", "SAGEMAKER_MODEL_SERVER_WORKERS": "2"}
    assert describe_ignored(env) == ("SAGEMAKER_TS_MAX_WORKERS has no effect: set SAGEMAKER_MODEL_SERVER_WORKERS",)


def test_an_empty_variable_counts_as_unset() -> None:
    assert read_hosting(dict.fromkeys(HOSTING_VARIABLES, "")) == read_hosting({})


@pytest.mark.parametrize(("name", "text"), MALFORMED)
def test_a_malformed_variable_is_an_error_that_names_it_and_says_what_it_may_be(name: str, text: str) -> None:
    env = {name: text}

    with pytest.raises(ContractError) as raised:
        read_hosting(env)

    assert name in raised.value.message
    assert text in raised.value.message
    assert HOSTING_VARIABLES[name] in raised.value.hint


@given(st.sampled_from(sorted(HOSTING_VARIABLES)), st.text(max_size=20))
def test_whatever_a_variable_holds_it_is_read_or_refused(name: str, text: str) -> None:
    with contextlib.suppress(ContractError):
        read_hosting({name: text})
