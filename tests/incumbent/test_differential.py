"""Whatever the request, a script is given what sagemaker-training 5.1.4 gives it, but for a list of differences."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.differences import BEHAVIOURS, DIFFERENCES, apply
from tests.support.sides import (
    CHANNELS,
    HYPERPARAMETERS,
    REPOSITORY,
    RESOURCES,
    Answer,
    Contract,
    Incumbent,
    answer_of_trainbox,
    contract,
    require_incumbent,
)

pytestmark = pytest.mark.incumbent

EXAMPLES = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Incumbent]:
    require_incumbent()
    incumbent = Incumbent(tmp_path_factory.mktemp("tree"))
    yield incumbent
    incumbent.close()


# -- contracts as SageMaker writes them ------------------------------------------------------------------------------

# No NUL and no half of a surrogate pair: an operating system cannot pass them, and both sides refuse.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
PLAIN = st.sampled_from(
    [
        *("32", "0.1", "1e-05", "1e400", "-0", "-1", "0123", "NaN", "-Infinity", "9" * 4300, "9" * 4301),
        *("true", "True", "null", "None", "", " ", '"', "adam", '"adam"', '"\\"twice\\""'),
        *("[1, 2, 'a']", '{"b": 1, "a": [2]}', "$(id)", "a;b", "it's", "--x", "a\nb", "s3://bucket/key"),
    ]
)
VALUES = PLAIN | TEXT | JSON.map(json.dumps) | JSON
USER_NAMES = (
    st.sampled_from(["a", "A", "lr", "batch-size", "batch_size", "batch.size", "eta", "ä", "ß", "学習率", "x=y", ""])
    | TEXT
)
CONTAINER_NAMES = st.sampled_from(
    [
        *("sagemaker_program", "sagemaker_submit_directory", "sagemaker_region", "sagemaker_job_name"),
        *("sagemaker_container_log_level", "sagemaker_s3_output", "sagemaker_enable_cloudwatch_metrics"),
        *("sagemaker_mpi_enabled", "sagemaker_torch_distributed_enabled", "sagemaker_instance_type", "sagemaker_own"),
        *(
            "default_user_module_name",
            "_tuning_objective_metric",
            "mp_parameters",
            "trainbox_backend",
            "Sagemaker_other",
        ),
    ]
)
PROGRAMS = st.sampled_from(["train.py", "train.sh", "src/train.py", "train", "a.py.py", "my train.py", "lerne_ä.py"])


@st.composite
def hyperparameters(draw: st.DrawFn) -> dict[str, object]:
    values: dict[str, object] = draw(st.dictionaries(USER_NAMES | CONTAINER_NAMES, VALUES, max_size=6))
    if draw(st.booleans()):
        values["sagemaker_program"] = draw(PROGRAMS | PROGRAMS.map(json.dumps))
    if draw(st.integers(0, 4)) == 0:
        values["sagemaker_distribution_instance_groups"] = json.dumps(draw(st.lists(st.sampled_from(["g1", "g2"]))))
    if draw(st.integers(0, 4)) == 0:
        values["processes_per_host"] = "1"
    return values


@st.composite
def resources(draw: st.DrawFn) -> dict[str, object]:
    hosts = sorted(f"algo-{number + 1}" for number in range(draw(st.integers(1, 12))))
    current = draw(st.sampled_from(hosts))
    config: dict[str, object] = {"current_host": current, "hosts": hosts}
    kind = draw(st.sampled_from(["local", "homogeneous", "heterogeneous"]))
    if kind != "local":
        cut = draw(st.integers(1, len(hosts))) if kind == "heterogeneous" else len(hosts)
        parts = {name: part for name, part in {"g1": hosts[:cut], "g2": hosts[cut:]}.items() if part}
        config["current_group_name"] = next(name for name, part in parts.items() if current in part)
        config["current_instance_type"] = draw(st.sampled_from(["ml.m5.large", "ml.trn2.48xlarge", "local"]))
        config["instance_groups"] = [
            {"instance_group_name": name, "instance_type": "ml.m5.large", "hosts": part} for name, part in parts.items()
        ]
    if draw(st.booleans()):
        config["network_interface_name"] = draw(st.sampled_from(["eth0", "ethwe"]))
    if draw(st.integers(0, 3)) == 0:
        config["topology"] = [{"hostName": host, "capacityUnitId": "cu-1"} for host in hosts]
    return config


CHANNEL_NAMES = st.sampled_from(["train", "Train", "validation", "code", "my-val", "v1.2", "a"]) | st.from_regex(
    r"[A-Za-z0-9_][A-Za-z0-9.\-_]{0,20}", fullmatch=True
)
CHANNEL = st.fixed_dictionaries(
    {"TrainingInputMode": st.sampled_from(["File", "Pipe"])},
    optional={
        "ContentType": TEXT,
        "S3DistributionType": st.sampled_from(["FullyReplicated", "ShardedByS3Key"]),
        "RecordWrapperType": st.sampled_from(["None", "RecordIO"]),
    },
)
ENVIRONMENT = st.fixed_dictionaries(
    {},
    optional={
        "TRAINING_JOB_NAME": st.just("flights-2026"),
        "AWS_REGION": st.just("eu-central-1"),
        "AWS_DEFAULT_REGION": st.just("us-west-2"),
        "SAGEMAKER_PROGRAM": PROGRAMS,
        "SAGEMAKER_SUBMIT_DIRECTORY": st.just("s3://bucket/source.tar.gz"),
        "SAGEMAKER_TRAINING_MODULE": st.just("framework.training:main"),
        "SAGEMAKER_CONTAINER_LOG_LEVEL": st.sampled_from(["10", "INFO"]),
        "SM_HP_MP_PARAMETERS": st.sampled_from(["{}", '{"partitions": 2}', ""]),
        "SM_HP_A": st.just("from the request"),
        "PYTHONPATH": st.just("/opt/program"),
        "PYTHONUNBUFFERED": st.just("TRUE"),
    },
)


@st.composite
def contracts(draw: st.DrawFn) -> Contract:
    files = {
        HYPERPARAMETERS: draw(hyperparameters()),
        RESOURCES: draw(resources()),
        CHANNELS: draw(st.dictionaries(CHANNEL_NAMES, CHANNEL, max_size=4)),
    }
    absent = draw(st.sets(st.sampled_from(sorted(files)), max_size=1))
    return Contract({name: json.dumps(files[name]) for name in files if name not in absent}, draw(ENVIRONMENT))


def _told_apart(ours: Answer, theirs: Answer) -> str:
    """What a person wants to see of two answers."""
    if ours.errors or theirs.errors:
        return f"trainbox: {ours.errors or 'runs'}; sagemaker-training: {theirs.errors or 'runs'}"
    names = [
        name
        for name in {**ours.variables, **theirs.variables}
        if ours.variables.get(name) != theirs.variables.get(name)
    ]
    found = [f"{name}: {ours.variables.get(name)!r} and {theirs.variables.get(name)!r}" for name in names]
    return "\n".join(found or [f"arguments: {ours.arguments} and {theirs.arguments}"])


@EXAMPLES
@given(asked=contracts())
def test_a_script_is_given_what_sagemaker_training_gives_it(theirs: Incumbent, asked: Contract) -> None:
    expected = apply(DIFFERENCES, asked, theirs.answer)
    answer = answer_of_trainbox(asked, theirs.root)
    assert answer.comparable() == expected.comparable(), _told_apart(answer, expected)


# -- contracts that are wrong ----------------------------------------------------------------------------------------


@st.composite
def damaged(draw: st.DrawFn) -> Contract:
    """A contract with one file that is cut off, something else, or has a key of another type."""
    good = draw(contracts())
    name = draw(st.sampled_from([HYPERPARAMETERS, RESOURCES, CHANNELS]))
    text = good.files.get(name, "{}")
    ways = [
        st.integers(0, len(text)).map(lambda end: text[:end]),
        JSON.map(json.dumps),
        TEXT,
        st.just("\udcff" + text),  # a byte that is not UTF-8
        st.just("\ufeff" + text),
    ]
    if keys := sorted(good.read(name)):
        changed = st.tuples(st.sampled_from(keys), JSON)
        ways.append(changed.map(lambda change: json.dumps({**good.read(name), change[0]: change[1]})))
    return Contract({**good.files, name: draw(st.one_of(ways))}, good.env)


@EXAMPLES
@given(asked=damaged())
def test_a_damaged_contract_is_refused_by_file_or_read_as_sagemaker_training_reads_it(
    theirs: Incumbent, asked: Contract
) -> None:
    answer = answer_of_trainbox(asked, theirs.root)  # any error but one of ours ends the test here
    if answer.errors:
        return
    expected = apply(DIFFERENCES, asked, theirs.answer)
    assert answer.comparable() == expected.comparable(), _told_apart(answer, expected)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_a_value_of_any_depth_reaches_the_script(tmp_path: Path, opening: str, closing: str) -> None:
    # Python's limit is 1,000 frames, of which a test and a supervisor have used up different numbers.
    for depth in (100, 500, *range(850, 1000, 2), 1200):
        value = f"{opening * depth}1{closing * depth}"
        assert not answer_of_trainbox(contract({"layers": value}), tmp_path).errors


@pytest.mark.parametrize(
    "asked",
    [
        contract({"a": json.dumps({"\0": 1})}),
        contract({"a": json.dumps({"\ud800": 1})}),
        contract({"a": json.dumps({"k": "\0"})}),
        contract({"sagemaker_job_name": json.dumps("a\0")}),
        contract({"sagemaker_own": json.dumps("a\0")}),
        contract(resources={"current_host": "a\0", "hosts": ["a\0"]}),
        contract(resources={"network_interface_name": "\ud800"}),
        contract(resources={"current_group_name": "\ud800"}),
        contract(resources={"current_instance_type": "\0"}),
        Contract({HYPERPARAMETERS: '{"sagemaker_program": "train.py", "a": ' + "9" * 5000 + "}"}),
    ],
    ids=lambda asked: repr(asked.files)[-120:] if isinstance(asked, Contract) else str(asked),
)
def test_what_no_operating_system_can_pass_is_refused_or_passed_otherwise(tmp_path: Path, asked: Contract) -> None:
    assert answer_of_trainbox(asked, tmp_path).errors in {(), ("contract: ContractError",)}


# -- the list of differences -----------------------------------------------------------------------------------------


@pytest.mark.representative
@pytest.mark.parametrize("name", DIFFERENCES)
def test_every_difference_is_real(theirs: Incumbent, name: str) -> None:
    asked = DIFFERENCES[name].example
    others = {other: difference for other, difference in DIFFERENCES.items() if other != name}
    answer = answer_of_trainbox(asked, theirs.root)
    assert not answer.errors
    assert apply(DIFFERENCES, asked, theirs.answer).comparable() == answer.comparable()
    assert apply(others, asked, theirs.answer).comparable() != answer.comparable()


def test_every_difference_has_its_row_in_the_docs_and_every_row_its_test() -> None:
    text = (REPOSITORY / "docs" / "differences.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|", text, re.MULTILINE)
    rows = [row for row in rows if not row.startswith(("hosting-", "models-"))]  # tests/serving has those
    assert sorted(rows) == sorted([*DIFFERENCES, *BEHAVIOURS])
    behaviours = Path(__file__).with_name("test_behaviour.py").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^def (test_\w+)", behaviours, re.MULTILINE)) == sorted(BEHAVIOURS.values())
