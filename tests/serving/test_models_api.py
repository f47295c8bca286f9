"""The API for many models, from bytes to answers: names, pages, memory, trials; all of it without a process."""

import json
import os
import signal
from collections.abc import Sequence
from typing import cast
from urllib.parse import quote, quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.serving import Linear
from trainbox.contract.hosting import read_hosting
from trainbox.errors import DataError, RequirementsError
from trainbox.serving.bodies.request_errors import RequestError
from trainbox.serving.hooks.calls import HookError
from trainbox.serving.multi import api
from trainbox.serving.multi.exchange import Exchange
from trainbox.serving.multi.models_responder import LoadedModel, ModelsResponder
from trainbox.serving.multi.room import Room, find_room, refuse_after, refuse_before
from trainbox.serving.multi.store import Store, StoredModel
from trainbox.serving.multi.trial import explain_end, explain_error
from trainbox.serving.responder import ModelResponder, Request, Response

MIB = 2**20
NAMES = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=50)

# ---- paths, bodies, pages ----


@given(NAMES)
def test_every_name_that_can_be_shown_survives_its_path(name: str) -> None:
    path = f"/models/{quote(name, safe='')}"
    assert api.read_target(path.encode()) == api.Target("describe", name)
    assert api.read_target(f"{path}/invoke".encode()) == api.Target("invoke", name)
    body = json.dumps({"model_name": name, "url": "/opt/ml/models/m/model"}).encode()
    assert api.read_load(body) == api.LoadModel(name, "/opt/ml/models/m/model")


@given(st.binary(max_size=60), st.sampled_from(["", "/invoke", "/", "/x/invoke"]))
def test_a_path_of_any_bytes_is_a_target_or_refused(name: bytes, rest: str) -> None:
    path = f"/models/{quote_from_bytes(name, safe=b'./%')}{rest}".encode()
    try:
        target = api.read_target(path)
    except RequestError:
        return
    assert target is None or target.name.isprintable()


@pytest.mark.parametrize(
    ("path", "target"),
    [
        (b"/models", api.Target("list")),
        (b"/models/", api.Target("list")),
        (b"/models/a", api.Target("describe", "a")),
        (b"/models/a%2Fb%2f..", api.Target("describe", "a/b/..")),
        (b"/models/../invoke", api.Target("invoke", "..")),
        (b"/models/invoke", api.Target("describe", "invoke")),
        (b"/models/%25", api.Target("describe", "%")),
        (b"/models/a/invoke/", None),
        (b"/models/a/b", None),
        (b"/modelsa", None),
    ],
)
def test_a_path_is_read_as_it_came(path: bytes, target: api.Target | None) -> None:
    assert api.read_target(path) == target


@given(st.binary(max_size=200))
def test_a_body_of_any_bytes_is_a_load_or_refused(body: bytes) -> None:
    with pytest.raises(RequestError):
        api.read_load(body)


@pytest.mark.parametrize("url", ["", "models/m", "s3://bucket/m", "/m\n", "/\u2028", "/" * 5000, "file://m"])
def test_an_url_that_is_no_path_is_refused(url: str) -> None:
    with pytest.raises(RequestError, match="is not the absolute path of a directory"):
        api.read_load(json.dumps({"model_name": "m", "url": url}).encode())


@given(st.sets(NAMES, max_size=30), st.integers(1, 9))
def test_pages_hold_every_model_once_also_while_others_come_and_go(names: set[str], limit: int) -> None:
    models = {name: f"/m/{name}" for name in names}
    seen: list[str] = []
    query = f"limit={limit}"
    while True:
        page = json.loads(api.list_page(models, query.encode()))
        assert all(models[each["modelName"]] == each["modelUrl"] for each in page["models"])
        seen += [each["modelName"] for each in page["models"]]
        assert len(page["models"]) <= limit
        if "nextPageToken" not in page:
            break
        for name in seen:  # what has been listed is unloaded meanwhile
            models.pop(name, None)
        query = f"limit={limit}&next_page_token={quote(page['nextPageToken'])}"
    assert seen == sorted(names)


def test_a_list_has_a_hundred_models_a_page() -> None:
    page = json.loads(api.list_page({f"{number:03}": "/m" for number in range(101)}, b""))
    assert len(page["models"]) == 100
    rest = json.loads(api.list_page({f"{number:03}": "/m" for number in range(101)}, b"next_page_token=MDk5"))
    assert rest == {"models": [{"modelName": "100", "modelUrl": "/m"}]}


@pytest.mark.parametrize(
    "query", [b"limit=0", b"limit=-1", b"limit=x", b"limit=", b"next_page_token=%ff", b"next_page_token=!"]
)
def test_a_query_that_is_none_is_refused(query: bytes) -> None:
    with pytest.raises(RequestError):
        api.list_page({"m": "/m"}, query)


# ---- what is answered ----


def test_memory_that_does_not_suffice_is_507_before_and_after_the_trial() -> None:
    room = Room(available_bytes=300 * MIB, reserved_bytes=200 * MIB)
    assert refuse_before(room, 100 * MIB) is refuse_after(room, 100 * MIB) is refuse_before(None, 2**60) is None
    early, late = refuse_before(room, 101 * MIB), refuse_after(room, 150 * MIB)
    assert early is not None
    assert late is not None
    assert (early.status, late.status) == (507, 507)
    assert "its files have 101 MiB, 300 MiB is available, of which 200 MiB is for requests" in early.text
    assert "the model needs 150 MiB of memory" in late.text
    assert Room(available_bytes=1, reserved_bytes=2).free_bytes == 0


def test_requests_keep_what_their_bodies_may_need_and_a_quarter_at_most() -> None:
    assert find_room(None, workers=2, largest_body=MIB) is None
    assert find_room(1000 * MIB, workers=2, largest_body=MIB) == Room(1000 * MIB, 70 * MIB)
    assert find_room(1000 * MIB, workers=256, largest_body=25 * MIB) == Room(1000 * MIB, 250 * MIB)


@pytest.mark.parametrize(
    ("status", "kills", "is_late", "code", "text"),
    [
        (9, 1, False, 507, "the kernel has ended its trial"),
        (9, 0, False, 500, "killed by SIGKILL"),
        (9, 0, True, 500, "could not be loaded within 5 s"),
        (int(signal.SIGSEGV), 1, False, 500, "killed by SIGSEGV"),
        (3 << 8, 0, False, 500, "ended with exit code 3"),
    ],
)
def test_a_trial_that_says_nothing_is_explained_by_its_end(
    status: int, kills: int, is_late: bool, code: int, text: str
) -> None:
    reply = explain_end(status, is_late=is_late, seconds=5.0, memory_kills=kills)
    assert (reply.status, text in reply.text) == (code, True)


def test_files_are_at_fault_with_400_code_with_500_and_memory_with_507() -> None:
    hook = HookError("model_fn: MemoryError")
    hook.__cause__ = MemoryError()
    errors = [
        DataError("d", hint="h"),
        RequirementsError("r"),
        HookError("model_fn"),
        ValueError("v"),
        MemoryError(),
        hook,
    ]
    assert [explain_error(error).status for error in errors] == [400, 400, 500, 500, 507, 507]
    assert explain_error(errors[0]) == api.Reply(400, "d", "h")


# ---- what outlives a loader ----


def test_the_list_of_models_is_found_again_and_what_was_cut_off_is_none(capfd: pytest.CaptureFixture[str]) -> None:
    descriptor = os.memfd_create("test")
    store = Store(descriptor)
    assert store.read() == ()
    records = (StoredModel("a" * 1000, "/a"), StoredModel("日本", "/b", is_loaded=False))
    store.write(records)
    store.write(records[1:])
    assert Store(descriptor).read() == records[1:]
    os.pwrite(descriptor, (10**6).to_bytes(8), 0)
    assert store.read() == ()
    assert "none is loaded again" in capfd.readouterr().err
    os.close(descriptor)


# ---- requests that meet ----


class Counting(ModelResponder):
    """Notes how many requests it is given at once."""

    def __init__(self, factor: float) -> None:
        super().__init__(read_hosting({}), Linear(names=("a",)))
        self.met: list[int] = []
        self.threads = 0
        self.joins = factor > 1

    def warm_up(self, threads: int) -> None:
        self.threads = threads

    def answer(self, request: Request) -> Response:
        self.met.append(1)
        return super().answer(request)

    def answer_together(self, requests: Sequence[Request]) -> list[Response]:
        self.met.append(len(requests))
        return [super(Counting, self).answer(request) for request in requests]


def test_requests_that_meet_are_sorted_by_their_models_and_answered_in_their_order() -> None:
    models = ModelsResponder(read_hosting({}), cast("Exchange", None))  # nobody asks the loader
    joining, single = Counting(2), Counting(1)
    models.models.update(a=LoadedModel("/a", joining), b=LoadedModel("/b", single))
    models.warm_up(3)
    assert joining.threads == 0  # before its first request
    order = ["a", "b", "a", "none", "b", "a"]
    requests = [
        Request({"content-type": "text/csv"}, str(place).encode(), model=name) for place, name in enumerate(order)
    ]
    answers = models.answer_together(requests)
    assert [each.status for each in answers] == [200, 200, 200, 404, 200, 200]
    assert [each.body for each in answers if each.status == 200] == [b"0.0\n", b"1.0\n", b"2.0\n", b"4.0\n", b"5.0\n"]
    assert (joining.met, single.met, joining.threads, single.threads) == ([3], [1, 1], 3, 3)
