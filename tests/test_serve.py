"""`deftx serve`: what clients are told, over loopback; a stand-in for the model where it does not
matter."""

import http.client
import json
import os
import re
import signal
import socket
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from serve_stand_in import LABELS, NAMES, StandIn, ask, call, serving
from tiny import random_vector, sentences

import deftx
from deftx.cli import main
from deftx.cli.actions import switcher_for
from deftx.core.provenance import DataRecord, Provenance
from deftx.errors import DeftxError
from deftx.models import switcher
from deftx.models.heads import load_task_model
from deftx.serving import Access, Limits
from deftx.tasks.classification import probabilities
from deftx.tasks.registry import TASKS


@pytest.fixture(scope="module")
def port():
    with serving(StandIn(), Limits(texts=3, chars=9, body=3000)) as port:
        yield port


@pytest.mark.parametrize("language", ["min", None, ["ace", None, "min"]])
def test_answers_come_in_order_with_label_and_probabilities(port, language):
    status, said = ask(port, ["a", "", "abc"], language)
    each = language if isinstance(language, list) else [language] * 3
    assert status == 200
    for row, name, size in zip(said["predictions"], each, [1, 0, 3], strict=True):
        shares = dict(zip(LABELS, [size / 100, [*NAMES, None].index(name) / 10], strict=True))
        best = max(LABELS, key=shares.__getitem__)
        assert row == {
            "language": name,
            "label": best,
            "probability": shares[best],
            "probabilities": shares,
        }


def test_languages_labels_and_health_can_be_asked_for(port):
    about = {"languages": NAMES, "kind": "classification", "labels": list(LABELS), "pairs": None}
    assert json.loads(call(port, "/languages")[2]) == about
    assert call(port, "/health")[::2] == (200, b'{"status":"ok","waiting":0}')


def test_the_interface_is_described(port):
    described = json.loads(call(port, "/openapi.json")[2])
    assert set(described["paths"]) == {"/predict", "/languages", "/health"}
    assert set(described["paths"]["/predict"]["post"]["responses"]) == {
        "200",
        "401",
        "408",
        "413",
        "422",
        "503",
    }
    assert described["info"]["version"] == deftx.__version__
    assert call(port, "/docs")[0] == 404


def test_the_page_needs_nothing_from_elsewhere(port):
    status, headers, content = call(port, "/")
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert not re.search(rb"(?:src|href)=.(?:https?:)?//|@import|url\(", content)


WRONG = {
    "no JSON": (b'{"texts"', 422, r"body: not JSON, at character \d"),
    "not JSON by its header": (None, 422, r"body: "),
    "no object": ([], 422, r"body: "),
    "bytes that are no text": (b'{"texts": ["\xff"]}', 422, r"body: "),
    "a number without end": (b'{"texts": ' + b"9" * 2900, 422, r"body: "),
    "no texts": ({"language": "min"}, 422, r"texts: field required"),
    "none at all": ({"texts": [], "language": "min"}, 422, r"texts: .*at least 1"),
    "one text that is no list": (
        {"texts": "a", "language": "min"},
        422,
        r"texts: input should be a valid list",
    ),
    "a number for a text": (
        {"texts": [1], "language": "min"},
        422,
        r"texts\.0: input should be a valid string",
    ),
    "half a character": (
        b'{"texts": ["\\ud800"], "language": "min"}',
        422,
        r".*half a character|texts\.0: ",
    ),
    "no language": ({"texts": ["a"]}, 422, r"language: field required"),
    "an unknown language": (
        {"texts": ["a"], "language": "mni"},
        422,
        r"unknown language 'mni' \(did you mean 'min'\?\); known: ace, ban, min",
    ),
    "one of them unknown": (
        {"texts": ["a", "b"], "language": ["min", "x"]},
        422,
        r"unknown language 'x'.*ace",
    ),
    "too few languages": (
        {"texts": ["a", "b"], "language": ["min"]},
        422,
        r"2 texts and 1 languages: give one",
    ),
    "too few pairs": (
        {"texts": ["a", "b"], "language": "min", "pairs": ["a"]},
        422,
        r"2 texts and 1 pairs",
    ),
    "too many parts": (
        {"texts": ["a"], "language": "min", "parts": [["a"], []]},
        422,
        r"1 texts and 2 parts",
    ),
    "parts that are not read": (
        {"texts": ["a"], "language": "min", "parts": [["a"]]},
        422,
        r".* have parts, which ",
    ),
    "an unknown field": (
        {"texts": ["a"], "language": "min", "lang": "x"},
        422,
        r"lang: extra inputs",
    ),
    "too many texts": (
        {"texts": ["a"] * 4, "language": "min"},
        413,
        r"4 texts; at most 3 are taken at once",
    ),
    "a long text": (
        {"texts": ["a" * 10], "language": "min"},
        413,
        r"a text of 10 characters; at most 9",
    ),
    "a long pair": (
        {"texts": ["a"], "language": "min", "pairs": ["a" * 10]},
        413,
        r"a text of 10 .*at most 9",
    ),
    "long parts": (
        {"texts": ["a"], "language": "min", "parts": [["a" * 5] * 2]},
        413,
        r"a text of 11 .*at most 9",
    ),
    "a long request": (
        {"texts": ["a" * 4000], "language": "min"},
        413,
        r"the request is too long; at most 3,000 bytes",
    ),
}


@pytest.mark.parametrize(("body", "status", "says"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_a_request_is_said_in_one_line_of_json(port, body, status, says):
    headers = {"Content-Type": "text/plain"} if body is None else {}
    found, _, content = call(
        port, "/predict", {"texts": ["a"], "language": "min"} if body is None else body, **headers
    )
    assert found == status
    detail = json.loads(content)["detail"]
    assert isinstance(detail, str)
    assert re.match(says, detail)
    assert "\n" not in detail


@pytest.mark.parametrize(("learnt", "given"), [(True, None), (False, ["b"])])
def test_texts_without_the_second_ones_that_the_task_was_learnt_with_are_refused(learnt, given):
    switcher = StandIn()
    switcher.pairs = learnt
    with serving(switcher) as port:
        status, said = ask(port, ["a"], "min", **({"pairs": given} if given else {}))
        assert (status, "the task was learnt from" in said["detail"]) == (422, True)
        assert ask(port, ["a"], "min", **({} if given else {"pairs": ["b"]}))[0] == 200


def test_a_long_request_that_does_not_say_how_long_it_is_is_refused_too(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/predict", (b" " * 1000 for _ in range(20)), encode_chunked=True)
    answer = connection.getresponse()
    assert answer.status == 413
    assert b"at most 3,000 bytes" in answer.read()
    connection.close()


def test_json_that_is_nested_without_end_is_refused(port):
    status, _, content = call(port, "/predict", b"[" * 2900)
    assert status in (400, 422)  # as deep as Python follows
    assert isinstance(json.loads(content)["detail"], str)


def test_a_failure_of_the_model_is_an_answer_too_and_the_next_request_is_answered(port):
    status, said = ask(port, ["break"], "min")
    assert (status, said) == (500, {"detail": "the server failed (RuntimeError): its log says why"})
    assert ask(port, ["a"], "min")[0] == 200


def test_where_too_much_waits_the_client_is_told_to_come_back():
    model, found = StandIn(), []
    threads = [
        threading.Thread(target=lambda: found.append(ask(port, ["a", "b"], "min")))
        for _ in range(2)
    ]
    with serving(model, Limits(texts=2, waiting=2)) as port:
        model.go.clear()
        threads[0].start()
        model.begun.wait()
        threads[1].start()
        while b'"waiting":2' not in call(port, "/health")[2]:
            time.sleep(0.01)
        status, headers, content = call(port, "/predict", {"texts": ["a"], "language": "ace"})
        model.go.set()
        for thread in threads:
            thread.join()
    assert (status, headers["retry-after"]) == (503, "1")
    assert json.loads(content)["detail"] == "2 texts wait already, and 2 may: try again later"
    assert [status for status, _ in found] == [200, 200]


SLOW = {
    "nothing": b"",
    "half a line": b"POST /pre",
    "half a head": b"POST /predict HTTP/1.1\r\nHost: localhost\r\n",
    "half a body": b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
    "half a second request": b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea",
}


@pytest.mark.parametrize("sent", SLOW.values(), ids=SLOW)
def test_a_client_that_does_not_finish_its_request_is_sent_away(sent):
    with (
        serving(StandIn(), Limits(seconds=0.5)) as port,
        socket.create_connection(("127.0.0.1", port)) as client,
    ):
        client.settimeout(10)
        client.sendall(sent)
        began, received = time.monotonic(), b""
        with suppress(ConnectionResetError):
            while part := client.recv(65536):
                received += part
        assert (
            0.3 < time.monotonic() - began < 9
        )  # 5 of them are those that a connection is kept after an answer
        assert (b"408" in received) == (b"Content-Length: 100" in sent)
        assert ask(port, ["ba"], "min")[0] == 200


def test_a_client_that_trickles_is_sent_away_all_the_same():
    with (
        serving(StandIn(), Limits(seconds=1)) as port,
        socket.create_connection(("127.0.0.1", port)) as client,
    ):
        client.sendall(b"GET /health HTTP/1.1\r\n")
        began = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() - began < 10:
                client.sendall(b"A: b\r\n")
                time.sleep(0.1)
        assert time.monotonic() - began < 5


def test_the_end_of_the_server_does_not_wait_for_clients_that_never_finish():
    for sent in SLOW.values():
        with serving(StandIn(), Limits(seconds=300)) as port:
            client = socket.create_connection(("127.0.0.1", port))
            client.sendall(sent)
            time.sleep(0.1)
            began = time.monotonic()
        assert time.monotonic() - began < 5
        client.close()


def test_connections_beyond_the_limit_are_told_so_or_closed():
    with serving(StandIn(), Limits(connections=4)) as port, ExitStack() as stack:
        assert call(port, "/health")[0] == 200
        for _ in range(12):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        with suppress(ConnectionError):
            assert call(port, "/health")[0] == 503
        stack.close()
        time.sleep(0.2)
        assert call(port, "/health")[0] == 200


@pytest.mark.parametrize(
    ("hosts", "host", "status"),
    [
        ((), "anything.example", 200),
        (("localhost",), "localhost:8000", 200),
        (("localhost",), "LOCALHOST", 200),
        (("localhost",), "evil.example", 400),
        (("localhost",), "localhost.evil.example", 400),
        (("*.example.org",), "a.example.org", 200),
        (("*.example.org",), "example.org.evil", 400),
    ],
)
def test_a_client_asks_under_a_name_that_is_allowed(hosts, host, status):
    with serving(StandIn(), access=Access(hosts)) as port:
        assert call(port, "/health", Host=host)[0] == status
        assert call(port, "/predict", {"texts": ["ba"], "language": "min"}, Host=host)[0] == status


@pytest.mark.parametrize(
    "wrong",
    [{"hosts": ("a*",)}, {"hosts": ("",)}, {"token": ""}, {"token": "ü"}, {"token": "a\nb"}],
)
def test_hosts_and_tokens_that_cannot_be_are_refused(wrong):
    with pytest.raises(DeftxError):
        Access(**wrong)


def test_without_the_token_nothing_is_told():
    asked = {"texts": ["ba"], "language": "min"}
    with serving(StandIn(), access=Access(token="secret")) as port:
        for wrong in ({}, {"Authorization": "Bearer secrets"}, {"Authorization": "Basic secret"}):
            for path, body in {
                "/predict": asked,
                "/languages": None,
                "/openapi.json": None,
            }.items():
                status, headers, content = call(port, path, body, **wrong)
                assert (status, headers["www-authenticate"]) == (401, "Bearer")
                assert "Authorization" in json.loads(content)["detail"]
        assert call(port, "/predict", asked, Authorization="Bearer secret")[0] == 200
        assert call(port, "/health")[0] == 200
        assert "secret" not in repr(Access(token="secret"))


def test_unknown_names_of_any_length_and_number_take_no_longer():
    with serving(StandIn()) as port:
        began = time.process_time()
        names = [f"{number}{'a' * 9000}" for number in range(60)]
        status, answer = ask(port, ["ba"] * 60, names)
        assert (status, answer["detail"][:19]) == (422, "unknown language '0")
        assert time.process_time() - began < 2


def test_limits_that_let_no_full_request_wait_are_refused():
    with pytest.raises(
        DeftxError, match=r"64 texts in a request \(--max-texts\), but 8 may wait \(--max-waiting\)"
    ):
        Limits(waiting=8)


# With models


@pytest.fixture(scope="module")
def parts(bases):
    """A base, a task vector and language vectors by name."""
    model = load_task_model(bases(), LABELS)
    languages = {name: random_vector(model, seed) for seed, name in enumerate(NAMES, 1)}
    return bases(), random_vector(model, 0, LABELS), languages


class Watched:
    """A Switcher of which every batch is compared, bit for bit, with the composed model of its
    language."""

    def __init__(self, base, task, languages):
        self.switcher, self.wrong = deftx.Switcher(base, task, languages), 0
        self.composed = {
            name: deftx.compose(base, task, vector) for name, vector in languages.items()
        }
        self.composed[None] = deftx.compose(base, task)
        self.languages, self.kind, self.pairs = self.switcher.languages, self.switcher.kind, None
        self.labels = self.switcher.labels

    def alone(self, examples, language):
        return probabilities(
            self.composed[language], self.switcher._tokenizer, examples, self.switcher._length
        )

    def probabilities(self, examples, languages):
        found = self.switcher.probabilities(examples, languages)
        self.wrong += not torch.equal(found, self.alone(examples, languages[0]))
        return found


def under_load(watched):
    """What six clients ask at once, and are answered: (text, language, prediction), and what was
    refused."""
    asked, faults, texts = [], [], sentences(12, seed=7)

    def client(seed):
        draw = torch.Generator().manual_seed(seed)
        for _ in range(6):
            numbers = torch.randint(len(texts), (3,), generator=draw).tolist()
            languages = [[*NAMES, None][n] for n in torch.randint(4, (3,), generator=draw).tolist()]
            status, said = ask(port, [texts[n] for n in numbers], languages)
            if status != 200:
                faults.append(said)
                continue
            asked.extend(
                zip([texts[n] for n in numbers], languages, said["predictions"], strict=True)
            )

    with serving(watched) as port:
        threads = [threading.Thread(target=client, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return asked, faults


def test_under_load_every_answer_is_the_one_of_the_model_composed_for_its_language(parts):
    watched = Watched(*parts)
    asked, faults = under_load(watched)
    assert faults == []
    assert len(asked) == 6 * 6 * 3
    assert watched.wrong == 0
    for (
        text,
        language,
        said,
    ) in asked:  # the company in a batch may change the last digits, and nothing else
        (shares,) = watched.alone(deftx.Examples([text]), language).tolist()
        assert said["language"] == language
        assert list(said["probabilities"].values()) == pytest.approx(shares, abs=1e-5)


def test_answers_of_a_half_switched_model_would_show(parts, monkeypatch):
    watched, write = Watched(*parts), switcher.write_entries
    monkeypatch.setattr(
        switcher, "write_entries", lambda weight, at, values: write(weight, at[::2], values[::2])
    )
    assert len(under_load(watched)[0]) == 6 * 6 * 3
    assert watched.wrong > 0


@pytest.fixture(scope="module")
def command(parts, tmp_path_factory):
    """What to type to serve the same at a port that is free."""
    base, task, languages = parts
    folder = tmp_path_factory.mktemp("vectors")
    for name, vector in {"task": task, **languages}.items():
        deftx.save(vector, folder / name)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    named = [part for name in NAMES for part in ("--language", str(folder / name))]
    return ["serve", "--base", base, "--task", str(folder / "task"), *named, "--port", str(port)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_the_server_when_it_has_answered(command, capsys, monkeypatch, number, code):
    port, found = int(command[-1]), []
    answer = deftx.Switcher.probabilities

    def slowly(*arguments):
        os.kill(os.getpid(), number)
        time.sleep(0.3)
        with pytest.raises(ConnectionError):  # no more are taken
            call(port, "/health")
        return answer(*arguments)

    def client():
        while True:
            try:
                found.append(call(port, "/languages"))
                break
            except ConnectionError:
                time.sleep(0.02)
        found.append(ask(port, ["ba be"], "min"))

    monkeypatch.setattr(deftx.Switcher, "probabilities", slowly)
    interrupt = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored where tests are in the background
    thread = threading.Thread(target=client)
    thread.start()
    with pytest.raises(SystemExit) as end:
        main(command)
    thread.join()
    signal.signal(signal.SIGINT, interrupt)
    shown = capsys.readouterr()
    assert end.value.code == code
    assert shown.out == f"serving ace, ban, min at http://127.0.0.1:{port} (Ctrl-C stops)\n"
    assert shown.err.startswith("deftx: stopped; to go on, type: deftx serve --base ")
    assert [status for status, *_ in found] == [200, 200]
    with pytest.raises(ConnectionError):
        call(port, "/health")


def test_vectors_are_combined_by_the_rule_that_is_named(command, parts, monkeypatch):
    served = []
    monkeypatch.setattr("deftx.serving.app.serve", lambda switcher, *_: served.append(switcher))
    with pytest.raises(SystemExit) as end:
        main([*command, "--rule", "ties:density=0.8"])
    assert not end.value.code
    base, task, languages = parts
    expected = deftx.compose(base, task, languages["min"], rule="ties:density=0.8").state_dict()
    with served[0].language("min") as model:
        assert all(
            torch.equal(weight, expected[name]) for name, weight in model.state_dict().items()
        )


def test_texts_are_read_in_the_spelling_that_is_named(command, parts, monkeypatch, tmp_path):
    served, file = [], tmp_path / "min.json"
    monkeypatch.setattr("deftx.serving.app.serve", lambda switcher, *_: served.append(switcher))
    file.write_text('{"lower_case": true, "words": {"ba": "be"}}')
    with pytest.raises(SystemExit) as end:
        main([*command, "--normalizer", f"min={file}"])
    assert not end.value.code
    with serving(served[0]) as port:
        shares = {text: ask(port, [text], "min")[1]["predictions"] for text in ("BA be", "be be")}
        others = {text: ask(port, [text], "ace")[1]["predictions"] for text in ("BA be", "be be")}
    assert shares["BA be"] == shares["be be"]
    assert others["BA be"] != others["be be"]


def test_text_that_the_tokenizer_does_not_know_is_answered_and_not_logged(bases, parts, capfd):
    base, task, languages = parts
    with serving(deftx.Switcher(base, task, languages)) as port:
        status, said = ask(port, ["ξένο κείμενο"], "min")
    assert (status, len(said["predictions"])) == (200, 1)
    assert capfd.readouterr() == ("", "")


def test_every_kind_of_task_may_be_served(bases, monkeypatch, tmp_path):
    served, model = [], load_task_model(bases(), LABELS, task=TASKS["tagging"])
    monkeypatch.setattr("deftx.serving.app.serve", lambda switcher, *_: served.append(switcher))
    deftx.save(
        replace(random_vector(model, 0, LABELS), provenance=Provenance(task="tagging")),
        tmp_path / "tagger",
    )
    with pytest.raises(SystemExit) as end:
        main(["serve", "--base", bases(), "--task", str(tmp_path / "tagger")])
    assert not end.value.code
    assert (served[0].kind, served[0].labels) == ("tagging", LABELS)


@pytest.mark.parametrize("name", ["", "mni="])
def test_a_spelling_of_no_language_is_one_line(command, capsys, tmp_path, name):
    (tmp_path / "min.json").write_text('{"lower_case": true, "words": {}}')
    with pytest.raises(SystemExit) as end:
        main([*command, "--normalizer", f"{name}{tmp_path / 'min.json'}"])
    shown = capsys.readouterr().err
    assert end.value.code == 2
    assert shown.count("\n") == 1
    assert f"--normalizer {name}{tmp_path / 'min.json'} " in shown
    assert "languages: ace, ban, min" in shown


def test_a_task_that_has_seen_no_capitals_is_warned_of(parts, recwarn):
    base, task, languages = parts
    task = replace(task, provenance=replace(task.provenance, data=DataRecord(lower_case=True)))
    normalizers = {"ace": deftx.Normalizer({}, lower=True)}
    with pytest.warns(
        UserWarning,
        match=r"without capitals, and texts in ban, min may have some; --normalizer says",
    ):
        switcher_for(base, [task], languages, normalizers, rule="sum", ignore_base_mismatch=False)
    switcher_for(
        base,
        [task],
        languages,
        dict.fromkeys(NAMES, normalizers["ace"]),
        rule="sum",
        ignore_base_mismatch=False,
    )
    assert [str(one.message) for one in recwarn if "capitals" in str(one.message)] == []


def test_an_address_that_is_taken_is_one_line(command, capsys):
    with socket.create_server(("127.0.0.1", int(command[-1]))), pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 2
    line = capsys.readouterr().err
    assert re.fullmatch(
        r"deftx: cannot listen at 127.0.0.1, port \d+: .*: choose others, --host and --port\n", line
    )


def test_without_the_extra_a_line_says_what_to_install(command, capsys, monkeypatch):
    monkeypatch.delitem(__import__("sys").modules, "deftx.serving.app")
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 2
    assert (
        capsys.readouterr().err == "deftx: uvicorn is not installed: pip install 'deftx[serve]'\n"
    )


def test_the_page_is_in_the_package():
    assert (Path(deftx.__file__).parent / "serving" / "page.html").is_file()
