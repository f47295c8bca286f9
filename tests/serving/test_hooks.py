"""The user's inference.py: every signature with and without a context, what hooks return, and what their errors say."""

import json
import pickle
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from trainbox.errors import ProgramError
from trainbox.serving.hooks.answers import Defaults, HookAnswer, answer_with_hooks, encode_parameters
from trainbox.serving.hooks.calls import HookError, Hooks, call, load_hooks, load_user_model
from trainbox.serving.hooks.context import Context, make_context
from trainbox.serving.hooks.user_module import Module


@pytest.fixture
def _modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = {*sys.modules}
    yield
    for name in {*sys.modules} - before:
        del sys.modules[name]


pytestmark = pytest.mark.usefixtures("_modules")

DEFAULTS = Defaults(
    decode=lambda body, kind: f"decoded {body!r} {kind}",
    predict=lambda data, model: f"predicted {data} {model}",
    encode=lambda prediction, accept: (f"encoded {prediction}".encode(), accept),
)


def load(directory: Path, text: str) -> Hooks:
    sys.modules.pop("inference", None)
    path = directory / "inference.py"
    path.write_text(text)
    return load_hooks(Module(path, ()))


def ask(
    hooks: Hooks,
    headers: Mapping[str, str] | None = None,
    *,
    body: bytes = b"1,2",
    content_type: str = "text/csv",
    accept: str = "text/plain",
) -> tuple[HookAnswer, Context]:
    context = make_context("/opt/ml/model", headers, "id-1")
    found = answer_with_hooks(hooks, "M", body, content_type, accept, context=context, defaults=DEFAULTS)
    return found, context


HOOKS = """
def model_fn(model_dir{0}): return ["model_fn", model_dir{1}]
def input_fn(body, content_type{0}): return ["input_fn", body, content_type{1}]
def predict_fn(data, model{0}): return ["predict_fn", data, model{1}]
def output_fn(prediction, accept{0}): return repr(["output_fn", prediction, accept{1}])
def pre_model_fn(model_dir{0}): print("pre", model_dir{1})
def model_warmup_fn(model_dir, model{0}): print("warm-up", model_dir, model{1})
"""
OF_CONTEXT = ", context.system_properties['model_dir'], context.get_request_header('X-Word')"


@pytest.mark.parametrize(
    ("parameter", "used", "said"),
    [("", "", ""), (", context", OF_CONTEXT, ", '/opt/ml/model', None"), (", context=None", OF_CONTEXT, None)],
)
def test_a_hook_gets_the_context_if_it_has_a_parameter_for_it(
    parameter: str, used: str, said: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hooks = load(tmp_path, HOOKS.format(parameter, used))
    start = make_context("/opt/ml/model")
    model = load_user_model(hooks, Path("/m"), lambda: 1 / 0, start)
    extra = ["/opt/ml/model", None] if parameter else []
    assert model == ["model_fn", "/m", *extra]
    printed = capsys.readouterr().out
    if said is not None:
        told = said.replace(",", "").replace("'", "")
        assert printed == f"pre /m{told}\nwarm-up /m {model}{told}\n"
    found, _ = ask(hooks, {"X-Word": "hi"})
    extra = ["/opt/ml/model", "hi"] if parameter else []
    decoded = ["input_fn", "1,2", "text/csv", *extra]
    expected = ["output_fn", ["predict_fn", decoded, "M", *extra], "text/plain", *extra]
    assert found == HookAnswer(repr(expected).encode(), "text/plain")


@pytest.mark.parametrize("parameter", ["", ", context"])
def test_transform_fn_answers_alone(parameter: str, tmp_path: Path) -> None:
    hooks = load(
        tmp_path,
        f"def transform_fn(model, body, kind, accept{parameter}): return f'{{model}} {{body}} {{kind}}', 'a/b'\n",
    )
    found, _ = ask(hooks, body=b"\x00", content_type="application/octet-stream")
    assert found == HookAnswer(b"M b'\\x00' application/octet-stream", "a/b")


def test_hooks_that_are_not_there_are_ours(tmp_path: Path) -> None:
    hooks = load(tmp_path, "def execution_parameters_fn(): return {'MaxPayloadInMB': 1}\n")
    found, _ = ask(hooks)
    assert found.body == b"encoded predicted decoded b'1,2' text/csv M"
    assert load_user_model(hooks, Path("/m"), lambda: "ours", make_context("/m")) == "ours"
    assert call(hooks, "execution_parameters_fn", context=make_context("/m")) == {"MaxPayloadInMB": 1}
    only = load(tmp_path, "def predict_fn(data, model): return data.upper()\n")
    assert ask(only)[0].body == b"encoded DECODED B'1,2' TEXT/CSV"


def test_callables_of_all_kinds_are_hooks(tmp_path: Path) -> None:
    hooks = load(
        tmp_path,
        "import functools, json\n"
        "class Predict:\n    def __call__(self, data, model, context): return context.get_request_id()\n"
        "predict_fn = Predict()\n"
        "def output(text, prediction, accept): return text + prediction\n"
        "output_fn = functools.partial(output, 'id: ')\n"
        "def input_fn(*given): return given\n"
        "model_fn = None\n",
    )
    assert sorted(hooks.functions) == ["input_fn", "output_fn", "predict_fn"]
    assert ask(hooks)[0].body == b"id: id-1"


RETURNED: dict[str, tuple[str, bytes, str]] = {
    "text": ("'é'", "é".encode(), "text/plain"),
    "bytes": ("b'x'", b"x", "text/plain"),
    "bytearray": ("bytearray(b'x')", b"x", "text/plain"),
    "a pair": ("('{}', 'application/json')", b"{}", "application/json"),
    "a pair of bytes": ("(b'x', 'image/png')", b"x", "image/png"),
}


@pytest.mark.parametrize("kind", RETURNED)
def test_what_output_fn_returns_is_the_answer(kind: str, tmp_path: Path) -> None:
    expression, body, content_type = RETURNED[kind]
    hooks = load(tmp_path, f"def output_fn(prediction, accept): return {expression}\n")
    assert ask(hooks)[0] == HookAnswer(body, content_type)


@pytest.mark.parametrize("expression", ["{'a': 1}", "[1]", "None", "3.5"])
def test_what_is_no_answer_is_told(expression: str, tmp_path: Path) -> None:
    hooks = load(tmp_path, f"def output_fn(prediction, accept): return {expression}\n")
    with pytest.raises(HookError, match=r"output_fn of inference.py returned \w+, expected bytes, text or an iterator"):
        ask(hooks)


def test_a_generator_is_sent_part_by_part_and_closed_with_its_client(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hooks = load(
        tmp_path,
        "def predict_fn(data, model):\n"
        "    try:\n"
        "        for n in range(9):\n            print('made', n)\n"
        "            yield f'part {n}\\n' if n else b'first\\n'\n"
        "    finally:\n        print('closed')\n",
    )
    found, _ = ask(hooks, accept="text/event-stream")
    assert isinstance(found.body, Iterator)
    assert found.content_type == "text/event-stream"
    assert [next(found.body), next(found.body)] == [b"first\n", b"part 1\n"]
    assert capsys.readouterr().out == "made 0\nmade 1\n"
    found.body.close()  # type: ignore[attr-defined]
    assert capsys.readouterr().out == "closed\n"


def test_an_asynchronous_generator_is_sent_and_closed_likewise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hooks = load(
        tmp_path,
        "import asyncio\n"
        "async def output_fn(p, accept):\n"
        "    try:\n"
        "        for n in range(3):\n            await asyncio.sleep(0)\n            yield f'part {n}'\n"
        "        if accept == 'breaks':\n            raise ValueError('late')\n"
        "    finally:\n        print('closed')\n",
    )
    found, _ = ask(hooks)
    assert isinstance(found.body, Iterator)
    assert list(found.body) == [b"part 0", b"part 1", b"part 2"]
    assert capsys.readouterr().out == "closed\n"
    found, _ = ask(hooks)
    assert isinstance(found.body, Iterator)
    assert next(found.body) == b"part 0"
    found.body.close()  # type: ignore[attr-defined]
    assert capsys.readouterr().out == "closed\n"
    found, _ = ask(hooks, accept="breaks")
    with pytest.raises(HookError, match=r"output_fn: ValueError: late \(inference.py:8 in output_fn\)"):
        list(found.body)


PARAMETERS = {
    "a dictionary": ("{'MaxPayloadInMB': 1}", ""),
    "text": ("'{\"MaxPayloadInMB\":1}'", ""),
    "a response of Flask": ("type('R', (), {'get_data': lambda self: b'{\"MaxPayloadInMB\":1}'})()", ""),
    "no JSON": ("'MaxPayloadInMB=1'", "returned str that is no object of JSON"),
    "a list": ("'[1]'", "returned str that is no object of JSON"),
    "an array": ("[1]", "returned list that is no object of JSON"),
    "nothing": ("None", "returned NoneType that is no object of JSON"),
    "a set in it": ("{'a': object()}", "returned dict that is no object of JSON"),
    "an error": ("1 / 0", r"ZeroDivisionError: division by zero \(inference.py:1 in execution_parameters_fn\)"),
}


@pytest.mark.parametrize("kind", PARAMETERS)
def test_execution_parameters_are_an_object_of_json(kind: str, tmp_path: Path) -> None:
    expression, problem = PARAMETERS[kind]
    hooks = load(tmp_path, f"def execution_parameters_fn(): return {expression}\n")
    if problem:
        with pytest.raises(HookError, match=f"execution_parameters_fn.*{problem}"):
            encode_parameters(hooks, make_context("/m"))
    else:
        assert encode_parameters(hooks, make_context("/m")) == b'{"MaxPayloadInMB":1}'


def test_a_generator_that_breaks_names_its_line(tmp_path: Path) -> None:
    hooks = load(tmp_path, "def output_fn(p, accept):\n    yield 'a'\n    yield 1\n")
    found, _ = ask(hooks)
    assert isinstance(found.body, Iterator)
    assert next(found.body) == b"a"
    with pytest.raises(HookError, match="a part of the answer of output_fn is int"):
        next(found.body)
    hooks = load(tmp_path, "def output_fn(p, accept):\n    yield 'a'\n    raise ValueError('late')\n")
    found, _ = ask(hooks)
    with pytest.raises(HookError, match=r"output_fn: ValueError: late \(inference.py:3 in output_fn\)"):
        list(found.body)


def test_hooks_set_headers_and_status_with_or_without_a_place(tmp_path: Path) -> None:
    hooks = load(
        tmp_path,
        "def output_fn(p, accept, context):\n"
        "    context.set_response_header(0, 'X-A', 1)\n"
        "    context.set_response_header('X-B', context.get_request_header(0, 'content-TYPE'))\n"
        "    context.set_response_content_type(0, 'text/x')\n"
        "    context.set_response_status(code=201, phrase='Made', idx=0)\n"
        "    assert context.request_processor[0].get_request_properties() == context.get_all_request_header(0)\n"
        "    return '', 'text/y'\n",
    )
    found, context = ask(hooks, {"Content-Type": "text/csv"})
    assert found == HookAnswer(b"", "text/x", 201, (("X-A", "1"), ("X-B", "text/csv")))
    assert context.get_response_status(0) == (201, "Made")


def test_a_header_with_a_line_break_is_refused(tmp_path: Path) -> None:
    hooks = load(tmp_path, "def output_fn(p, a, context): context.set_response_header('a', 'b\\r\\nc: d')\n")
    with pytest.raises(HookError, match="output_fn: ValueError: the header 'a' has a line break"):
        ask(hooks)


def test_an_error_names_the_hook_the_exception_and_the_users_own_line(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("import json\ndef parse(text):\n    return json.loads(text)\n")
    hooks = load(tmp_path, "import helper\ndef input_fn(body, kind):\n    return helper.parse(body)\n")
    with pytest.raises(HookError) as caught:
        ask(hooks, body=b"{")
    text = "input_fn: JSONDecodeError: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"
    assert caught.value.message == f"{text} (helper.py:3 in parse)"
    assert caught.value.status == 500


def test_an_exception_may_choose_the_status(tmp_path: Path) -> None:
    text = "class Bad(Exception): status_code = {}\ndef predict_fn(d, m): raise Bad('no such product')\n"
    for number, (chosen, status) in enumerate(((422, 422), (200, 500), ("'x'", 500))):
        place = tmp_path / str(number)  # of one file as long as another Python would take the bytecode that it kept
        place.mkdir()
        with pytest.raises(HookError, match="no such product") as caught:
            ask(load(place, text.format(chosen)))
        assert caught.value.status == status


def test_a_program_that_ends_is_an_error_of_its_hook(tmp_path: Path) -> None:
    with pytest.raises(HookError, match=r"predict_fn: SystemExit: 3 \(inference.py:2 in predict_fn\)"):
        ask(load(tmp_path, "import sys\ndef predict_fn(d, m): sys.exit(3)\n"))
    with pytest.raises(HookError, match=r"inference.py cannot be imported: SystemExit: 0"):
        load(tmp_path, "raise SystemExit(0)\n")


def test_text_that_is_no_utf8_is_the_callers_error(tmp_path: Path) -> None:
    hooks = load(tmp_path, "def input_fn(body, kind): return body\n")
    with pytest.raises(HookError, match="the body is no UTF-8: byte 1 is 0xff") as caught:
        ask(hooks, body=b"a\xff", content_type="application/json; charset=utf-8")
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_module\n", r"ModuleNotFoundError: No module named 'no_such_module' \(inference.py:1\)"),
        ("def model_fn(d):\n    x = (\n", r"SyntaxError: '\(' was never closed \(inference.py:2\)"),
        ("x = 1 / 0\n", r"ZeroDivisionError: .* \(inference.py:1\)"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_with_its_line(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(HookError, match=f"inference.py cannot be imported: {said}"):
        load(tmp_path, text)


@pytest.mark.parametrize(
    "text",
    [
        "def model_fn(): ...",
        "def input_fn(a): ...",
        "def predict_fn(a, b, c, d): ...",
        "def output_fn(a, b, *, c): ...",
    ],
)
def test_a_hook_of_other_parameters_is_told_at_the_start(text: str, tmp_path: Path) -> None:
    with pytest.raises(
        HookError, match=r"_fn of inference.py has the parameters \(.*\), expected \d, and perhaps context"
    ):
        load(tmp_path, text + "\n")


def test_transform_fn_beside_what_it_stands_for_is_told_though_it_is_imported(tmp_path: Path) -> None:
    (tmp_path / "others.py").write_text("def input_fn(b, c): ...\ndef transform_fn(m, b, c, a): ...\n")
    with pytest.raises(ProgramError, match="defines transform_fn and also input_fn"):
        load(tmp_path, "from others import *\n")


def test_requests_are_joined_only_where_the_user_says_that_rows_are_independent(tmp_path: Path) -> None:
    def is_rowwise(text: str) -> bool:
        return load(tmp_path, text).is_rowwise

    assert is_rowwise("def model_fn(d): ...\n")
    assert not is_rowwise("def predict_fn(d, m): ...\n")
    assert is_rowwise("def predict_fn(d, m): ...\npredict_fn.rowwise = True\n")
    assert not is_rowwise("def predict_fn(d, m): ...\npredict_fn.rowwise = True\ndef input_fn(b, c): ...\n")


def test_what_was_pickled_by_the_module_is_found_by_its_name(tmp_path: Path) -> None:
    hooks = load(
        tmp_path,
        "import pickle\nclass Model: word = 'hi'\ndef model_fn(d): return pickle.loads(pickle.dumps(Model()))\n",
    )
    model: Any = load_user_model(hooks, tmp_path, dict, make_context(str(tmp_path)))
    assert model.word == "hi"
    assert pickle.loads(pickle.dumps(model)).word == "hi"
    assert json.dumps(type(model).__module__) == '"inference"'
    assert sys.path[0] == str(tmp_path)
