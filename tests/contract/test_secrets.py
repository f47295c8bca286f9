"""What is secret: by the words of a name, by what a value is, within URLs; and texts that have nothing of it."""

import itertools
import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainbox.contract.credentials.secrets import (
    REDACTED,
    hidden_values,
    is_secret,
    redact,
    redact_arguments,
    secrets,
    secrets_of_urls,
    without_secrets,
)
from trainbox.contract.failures.diagnosis import Diagnosis
from trainbox.contract.failures.failure import compose

# -- names -------------------------------------------------------------------------------------------------------------

SECRET = [
    *("token", "api_token", "API_TOKEN", "apiToken", "hf-token", "HF_TOKEN", "my.token", "token_2", "access_token"),
    *("use_auth_token", "AWS_SESSION_TOKEN", "accesstoken", "api_tokens", "hf-tokens", "tokens", "id_token"),
    *("password", "DB_PASSWORD", "PGPASSWORD", "userPassword", "passwd", "MYSQL_PWD", "pwd", "db_pwd", "passphrase"),
    *("pass", "db_pass", "SMTP_PASS", "pass_word", "passcode", "passwords"),
    *("secret", "secrets", "clientSecret", "client_secret", "clientsecret", "AWS_SECRET_ACCESS_KEY", "secret_id"),
    *("api_key", "apikey", "apiKey", "API-KEY", "access.key", "AWS_ACCESS_KEY_ID", "secret.key", "private_key"),
    *("encryptionKey", "ACCOUNT_KEY", "signing_key", "ssh_key", "ssh-keys", "license.key", "OPENAI_KEY", "wandb_key"),
    *("TRAINBOX_PEER_KEY", "TRAINBOX_CHECKPOINT_KEY", "private_pem", "pem"),
    *("credential", "credentials", "google_credential", "cred", "creds", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
    *("auth", "http_auth", "REDISCLI_AUTH", "authorization", "Authorization", "bearer", "cookie", "cookies", "jwt"),
    *("GITHUB_PAT", "pat", "SENTRY_DSN", "dsn", "sas", "AZURE_SAS", "sas_url", "signature", "X-Amz-Signature"),
    *("KAGGLE_KEY", "DD_APP_KEY", "SUPABASE_SERVICE_ROLE_KEY", "DOCKER_AUTH_CONFIG", "NPM_TOKEN", "hub_token"),
    *("connection_string", "AzureWebJobsConnectionString", "connectionstring", "conn_str", "SLACK_WEBHOOK_URL"),
]
INNOCENT = [
    *("eta", "max_depth", "key", "keys", "num_keys", "sort_key", "key_columns", "primary_key", "foreignKey", "monkey"),
    *("keyboard", "public_key", "cache_key", "s3_key", "group_key", "key_dim", "num_key_value_heads", "tokenizer"),
    *("tokenizer_name", "tokenize_fn", "token_ids", "token_type_ids", "num_tokens", "num_tokens_seen", "max_tokens"),
    *("max_new_tokens", "tokens_per_batch", "eos_token", "eosToken", "eos_token_id", "pad_token", "bos_token"),
    *("unk_token", "cls_token", "image_token_index", "additional_special_tokens", "token_embedding_dim", "per_token"),
    *("trainable_token_indices", "moe_eval_capacity_token_fraction", "token2wav_config", "user_token_id"),
    *("include_num_input_tokens_seen", "token_pattern", "sas_date_formats", "scaling_pass_value", "pass_k"),
    *("secretary", "author", "authority", "PWD", "OLDPWD", "low_pass", "first_pass", "num_pass", "compass", "bypass"),
    *("pass_rate", "pattern", "patience", "model_signature", "signature_version", "auth_type", "SSH_AUTH_SOCK"),
    *("password_column", "secret_arn", "secret_name", "token_file", "token_url", "AWS_SHARED_CREDENTIALS_FILE"),
    *(
        "sass",
        "dense",
        "design",
        "cookie_name",
        "secrets_manager",
        "AWS_ENDPOINT_URL_SECRETS_MANAGER",
        "pin_memory",
        "",
        "123",
        "_",
        "sagemaker_program",
        "trainbox_hide",
    ),
]


@pytest.mark.parametrize("name", SECRET)
def test_a_name_can_say_that_its_value_is_secret(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", INNOCENT)
def test_other_names_say_no_such_thing(name: str) -> None:
    assert not is_secret(name)


STYLES = ("_".join, "-".join, ".".join, " ".join, lambda words: "".join(word.capitalize() for word in words))
STRONG = ["password", "passwd", "secret", "credentials", "bearer", "jwt", "cookie", "dsn", "pwd"]


@given(
    st.lists(st.text(string.ascii_lowercase, min_size=3, max_size=8), max_size=2),
    st.sampled_from(STRONG),
    st.sampled_from(STYLES),
    st.booleans(),
)
def test_a_secret_word_counts_in_every_spelling(owner: list[str], word: str, style: object, upper: bool) -> None:
    name = style([*owner, word])  # type: ignore[operator]
    assert is_secret(name.upper() if upper and name.lower() == name and name != "pwd" else name)


@given(st.sampled_from([*STRONG, "token", "auth", "pat", "sas", "pem"]), st.text("bdfgjlmqx", min_size=1, max_size=4))
def test_a_secret_word_within_another_word_counts_for_nothing(word: str, letters: str) -> None:
    assert not is_secret(f"{word}{letters}")


# -- the findings of the review ----------------------------------------------------------------------------------------

URL = "postgres://u:PGPW-33@h/d"
#: Names whose values stood in the failure file, `job.json` and printed commands.
MISSED = {
    **dict.fromkeys(
        (
            *("GITHUB_PAT", "pwd", "db_pwd", "dsn", "connection_string", "auth", "authorization", "bearer", "cookie"),
            *("jwt", "sas", "signature", "cred", "creds", "pass", "db_pass", "private_pem", "SLACK_WEBHOOK_URL"),
        ),
        "s3cr3t-of-somebody",
    ),
    **dict.fromkeys(("DB_URL", "DATABASE_URL", "MONGO_URI", "db"), URL),
    "PIP_INDEX_URL": "https://me:s3cr3t-of-somebody@pypi.example.org/simple",
    "PIP_EXTRA_INDEX_URL": "https://s3cr3t-of-somebody@pypi.example.org/simple",
    "index": "https://pypi.example.org/simple?token=s3cr3t-of-somebody",
}


@pytest.mark.parametrize("name", MISSED)
def test_what_the_review_found_in_the_open_is_hidden(name: str) -> None:
    value = MISSED[name]
    text = compose(Diagnosis("script", f"cannot use {value!r}", 1, hint=value), hidden_values({name: value}))
    shown = json.dumps(redact({name: value}))
    for secret in ("PGPW-33", "s3cr3t-of-somebody"):
        assert secret not in text
        assert secret not in shown
    assert REDACTED in text


@pytest.mark.parametrize(
    "innocent",
    [
        {"num_keys": "100", "sort_key": "date"},
        {"key_columns": "id", "primary_key": "customer_id", "monkey": "true"},
        {"token_ids": "1,2,3", "eos_token": "</s>", "max_tokens": "100"},
        {"api_key": "1", "password": "true", "token": "100", "secret": "date", "auth": "column", "pass": "20261129"},
    ],
)
def test_innocent_text_is_not_damaged(innocent: dict[str, str]) -> None:
    text = "failed at step 100: column 'date' of customer_id has 1001 values since 20261129, expected true for </s>"
    assert compose(Diagnosis("script", text, 1), hidden_values(innocent)) == text


# -- values ------------------------------------------------------------------------------------------------------------


def test_secrets_are_left_out_longest_first() -> None:
    values = {"a_token": "abcdefgh", "b_token": "abcdefghij", "c_token": "klmnopqr", "d_token": "xy", "eta": "0.1"}
    assert secrets(values) == ("abcdefghij", "abcdefgh", "klmnopqr")
    text = without_secrets("abcdefghij abcdefgh klmnopqr xy 0.1", secrets(values))
    assert text == f"{REDACTED} {REDACTED} {REDACTED} xy 0.1"


@given(
    st.dictionaries(
        st.sampled_from(["api_key", "password", "GITHUB_PAT", "cookie"]),
        st.text(min_size=8, max_size=30).filter(lambda text: not text.isspace()),
        min_size=1,
    ),
    st.text(max_size=20),
)
def test_no_long_secret_is_left_in_any_text(values: dict[str, str], around: str) -> None:
    hidden = hidden_values(values)
    text = without_secrets(around.join(["", *values.values(), ""]), hidden)
    assert not [value for value in secrets(values) if value in text.replace(REDACTED, "\0")]


@given(st.text(string.digits + ".,:-+ e", max_size=20) | st.text(max_size=7))
def test_short_and_numeric_values_are_never_looked_for_in_text(value: str) -> None:
    number = not value.strip(string.digits + ".,:-+ ") or len(value) < 8
    assert not number or secrets({"password": value}) == ()


@pytest.mark.parametrize("value", ["disabled", "required", "LOCALHOST", "password", "postgres"])
def test_words_that_everybody_uses_stay_in_text(value: str) -> None:
    assert secrets({"password": value}) == ()


def test_by_name_short_and_numeric_values_are_hidden_and_switches_are_not() -> None:
    values = {"password": "x", "token": 5, "auth": "true", "secret": "", "jwt": None, "api_key": "1234"}
    assert redact(values) == {
        "password": REDACTED,
        "token": REDACTED,
        "auth": "true",
        "secret": "",
        "jwt": None,
        "api_key": REDACTED,
    }


def test_names_that_somebody_calls_secret_are() -> None:
    values = {"endpoint": "internal-thing", "eta": "0.1"}
    assert redact(values, ["endpoint"]) == {"endpoint": REDACTED, "eta": "0.1"}
    assert hidden_values(values, also=["endpoint"]) == ("internal-thing",)


def test_a_secret_within_a_json_object_is_found_and_left_out() -> None:
    values = {"db": '{"host": "here", "password": "hunter2222"}', "sinks": '[{"api_key": "k-123456"}, 5]', "eta": "0.1"}
    assert set(secrets(values)) == {"hunter2222", "k-123456"}
    assert redact(values) == {
        "db": '{"host": "here", "password": "***"}',
        "sinks": '[{"api_key": "***"}, 5]',
        "eta": "0.1",
    }


def test_what_holds_no_secret_stays_byte_for_byte() -> None:
    values = {"list": "[1,2]", "object": '{"b":1,  "a": "é"}', "text": "a=b;c", "number": 5}
    assert redact(values) == values


def test_each_part_of_a_secret_object_is_secret() -> None:
    values = {"credentials": '{"user": "somebody-else", "password": "hunter2222"}', "api_tokens": '["tok-1111", 5]'}
    assert {"somebody-else", "hunter2222", "tok-1111"} <= set(secrets(values))


def test_a_secret_is_hidden_as_it_came_and_as_it_is_read() -> None:
    assert set(secrets({"api_token": '"tok-FFFF"'})) == {'"tok-FFFF"', "tok-FFFF"}


@pytest.mark.parametrize(
    "place",
    [
        "{{resolve:secretsmanager:db:SecretString:password}}",
        '"{{resolve:ssm:/a}}"',
        "/opt/ml/input/data/key/google.json",
        "/var/run/secrets/token",
        "~/.netrc",
        "arn:aws:secretsmanager:eu-west-1:123456789012:secret:db-a1b2c3",
    ],
)
def test_where_a_secret_is_is_none(place: str) -> None:
    values = {"password": place, "GOOGLE_APPLICATION_CREDENTIALS": place}
    assert redact(values) == values
    assert hidden_values(values) == ()


def test_secret_arguments_are_left_out_however_short() -> None:
    arguments = [
        "a b",
        "--pwd",
        "x",
        "--db.password=y",
        "+api_key=z",
        "--lr",
        "0.1",
        "--token",
        "--v",
        "u",
    ]
    assert [*redact_arguments(arguments)] == [
        *("a b", "--pwd", "***", "--db.password=***", "+api_key=***", "--lr", "0.1", "--token", "--v", "u"),
    ]


# -- URLs --------------------------------------------------------------------------------------------------------------

#: What stands in a text, and what is left of it.
URLS = {
    "postgres://u:PGPW-33@h/d": "postgres://u:***@h/d",
    "postgres://postgres:x@h": "postgres://postgres:***@h",
    "'mongodb+srv://me:p@ss:w@db/x'": "'mongodb+srv://me:***@db/x'",
    "redis://:hunter2@h:6379/0": "redis://:***@h:6379/0",
    "postgres://u:1234@h": "postgres://u:***@h",
    "postgres://u:pa/ss@h/d": "postgres://u:***@h/d",
    "postgres://u:pa#s?s@h/d": "postgres://u:***@h/d",
    "https://tok-12345@example.org": "https://***@example.org",
    "https://ghp_0123456789:x-oauth-basic@github.com/a": "https://***:***@github.com/a",
    "https://__token__:pypi-abc@index.example": "https://__token__:***@index.example",
    "two https://me:one@a https://me:two@b": "two https://me:***@a https://me:***@b",
    "https://b.s3.amazonaws.com/k?X-Amz-Credential=AKIA/x&X-Amz-Signature=0af&X-Amz-Expires=60": (
        "https://b.s3.amazonaws.com/k?X-Amz-Credential=***&X-Amz-Signature=***&X-Amz-Expires=60"
    ),
    "https://h/?X-Amz-Security-Token=IQoJ%2Fx": "https://h/?X-Amz-Security-Token=***",
    "https://a.blob.core.windows.net/c?sv=1&sig=a%2Fb": "https://a.blob.core.windows.net/c?sv=1&sig=***",
    "https://h/simple?token=abc#x": "https://h/simple?token=***#x",
    "https://maps.example.org/?key=AIza-x": "https://maps.example.org/?key=***",
    "Server=tcp:h;Uid=me;Password=a{b}c;": "Server=tcp:h;Uid=me;Password=***;",
}
UNTOUCHED = [
    "git+ssh://git@example.org/a.git@main",
    "https://example.org/a@b:c",
    "s3://bucket/key@2",
    "http://host:8080/path@x",
    "http://host:8080 me@example.org",
    '{"a":"http://host:8080","b":"me@example.org"}',
    "https://h/?max_tokens=5&page=2&next_token=abc",
    "f(a=1; b=2)",
    "lr=0.1 key=date",
    "://",
]


@pytest.mark.parametrize("text", URLS)
def test_passwords_tokens_and_signatures_of_urls_are_in_no_text(text: str) -> None:
    assert without_secrets(text, ()) == URLS[text]
    assert without_secrets(URLS[text], ()) == URLS[text]
    assert redact({"source": text}) == {"source": URLS[text]}


@pytest.mark.parametrize("text", UNTOUCHED)
def test_what_looks_like_them_and_is_none_stays(text: str) -> None:
    assert without_secrets(text, ()) == text


password = st.text(string.ascii_letters + string.digits + "-._~!$*+%:?#@", min_size=1, max_size=30)


@given(st.sampled_from(["postgres", "https", "redis", "mongodb+srv"]), password, st.sampled_from(["", "u", "admin"]))
def test_a_password_of_any_url_is_hidden(scheme: str, password: str, user: str) -> None:
    text = without_secrets(f"cannot connect to {scheme}://{user}:{password}@db.example.org/x: refused", ())
    assert text == f"cannot connect to {scheme}://{user}:***@db.example.org/x: refused"


PIECES = ["://", "@", ":", "/", "?", "&", ";", "=", "#", " ", "'", "8080", "user", "p4ssw0rd-1", "token", "sig"]


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_what_is_left_of_any_text_gives_nothing_away(text: str) -> None:
    assert not [found for found in secrets_of_urls(without_secrets(text, ())) if "p4ssw0rd" in found]


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("https://me:hunter22@example.org/simple", {"hunter22"}),
        ("https://tok-12345@example.org", {"tok-12345"}),
        ("https://tok-12345:x-oauth-basic@example.org", {"tok-12345", "x-oauth-basic"}),
        ("one postgresql://me:pass-111@db/x two https://me:pass-222@db", {"pass-111", "pass-222"}),
        ("postgres://postgres:a%2Fb%2Fcdefg@h", {"a%2Fb%2Fcdefg", "a/b/cdefg"}),
        ("https://h/?sig=0123abcd", {"0123abcd"}),
        ("git+ssh://git@example.org/a.git@main", set()),
        ("https://example.org/a@b:c", set()),
        ("s3://bucket/key@2", set()),
    ],
)
def test_what_urls_give_away_is_secret_under_any_name(url: str, found: set[str]) -> None:
    assert set(secrets({"source": url})) == found
    assert set(secrets_of_urls(url)) == found


def test_the_tables_have_no_name_twice() -> None:
    assert len({*SECRET}) == len(SECRET)
    assert len({*INNOCENT}) == len(INNOCENT)
    assert not [pair for pair in itertools.product(SECRET, INNOCENT) if pair[0] == pair[1]]
