"""The commands as a person meets them: real processes, what they print, and nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from edge_runtime import __version__
from edge_runtime.commands.options import ENGINE_SETTINGS
from edge_runtime.config import Settings
from edge_runtime.engine.request import Done, Timing
from edge_runtime.prompts import template
from edge_runtime.telemetry.records import Records
from tests import tiny_gguf

MEDGE = [sys.executable, "-m", "edge_runtime"]
KEPT = ("MEDGE_STATE", "MEDGE_PREFIX_DISK_MB")  # see conftest
ENVIRONMENT = {
    **{n: v for n, v in os.environ.items() if not n.startswith("MEDGE_") or n in KEPT},
    "COLUMNS": "200",
    "NO_COLOR": "1",
    "PYTHONUTF8": "1",
}
unix = pytest.mark.skipif(os.name == "nt", reason="uses signals and terminals as Unix has them")


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    before = set(psutil.Process().children(recursive=True))
    yield
    left = [p for p in psutil.Process().children(recursive=True) if p not in before]
    _, alive = psutil.wait_procs(left, timeout=3)
    assert not alive, f"left behind: {alive}"


def medge(*arguments: str | bytes, stdin: bytes = b"", **env: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*MEDGE, *arguments], input=stdin, capture_output=True, timeout=60, env={**ENVIRONMENT, **env}
    )


def sentence(run: subprocess.CompletedProcess[bytes], status: int) -> str:
    """The one line that a refused command says, and nothing else."""
    said = run.stderr.decode()
    assert run.returncode == status, said
    assert run.stdout == b""
    assert "Traceback" not in said
    lines = said.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("medge: ") and lines[0][-1] in ".?", said
    return lines[0]


def test_modules_in_the_current_folder_are_left_alone(tiny: Path, tmp_path: Path) -> None:
    """A downloaded file of that name is not run, neither by the command nor by the engine's process."""
    for name in ("json", "numpy", "edge_runtime", "struct", "llama_cpp"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger ran')")
    script = Path(sys.executable).with_name("medge")
    words = [script, "ask", "--json", "--model", tiny, "--max-tokens", "2", "Hello"]
    run = subprocess.run(words, cwd=tmp_path, capture_output=True, timeout=60, env=ENVIRONMENT)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["answer"]


# -- help


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("serve", tuple(Settings.model_fields)),
        ("ask", ENGINE_SETTINGS),
        ("chat", ENGINE_SETTINGS),
        ("info", ("model",)),
    ],
)
def test_help_has_every_setting(command: str, names: tuple[str, ...]) -> None:
    run = medge(command, "--help")
    assert run.returncode == 0
    text = run.stdout.decode()
    for name in names:
        assert "--" + name.replace("_", "-") in text
        # The beginning of its description, on a line that the table may have broken.
        assert " ".join((Settings.model_fields[name].description or "").split()[:3]) in text
    assert "--config" in text
    unexpected = [n for n in Settings.model_fields if n not in names and f"--{n.replace('_', '-')} " in text]
    assert not unexpected


def test_help_names_the_commands_and_version_is_the_packages() -> None:
    text = medge("-h").stdout.decode()
    assert all(re.search(rf"\b{command}\b", text) for command in ("serve", "ask", "chat", "info"))
    assert medge("--version").stdout.decode().strip() == f"medge {__version__}"


# -- refusals


def test_files_that_are_no_model(tiny: Path, tmp_path: Path) -> None:
    whole = tiny.read_bytes()
    contents = {
        "empty": b"",
        "other": b"%PDF-1.7" * 100,
        "header": whole[:100],
        "half": whole[: len(whole) // 2],
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.gguf").write_bytes(content)
    (tmp_path / "folder.gguf").mkdir()
    said = {}
    for name in ("missing", "folder", *contents):
        path = str(tmp_path / f"{name}.gguf")
        said[name] = sentence(medge("ask", "hi", "--model", path), 1)
        assert path in said[name]
    assert "does not exist" in said["missing"] and "is a directory" in said["folder"]
    assert len({text.partition(".gguf")[2] for text in said.values()}) >= 5, "each says what is wrong with it"


@pytest.mark.parametrize("command", [("ask", "hi"), ("serve", "--port", "0"), ("chat",), ("info",)])
def test_all_commands_refuse_alike(command: tuple[str, ...], tmp_path: Path) -> None:
    assert "none.gguf does not exist" in sentence(medge(*command, "--model", str(tmp_path / "none.gguf")), 1)


@pytest.mark.parametrize("command", [("ask", "hi"), ("serve", "--port", "0")])
def test_an_architecture_that_nobody_knows(command: tuple[str, ...], tmp_path: Path) -> None:
    path = tiny_gguf.write(tmp_path / "m.gguf", architecture="mystery", n_head=2, n_head_kv=1)
    assert "mystery" in sentence(medge(*command, "--model", str(path)), 1)


@unix
def test_a_file_that_may_not_be_read(tiny: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    path = tmp_path / "locked.gguf"
    path.write_bytes(tiny.read_bytes())
    path.chmod(0)
    assert "may not be read" in sentence(medge("ask", "hi", "--model", str(path)), 1)


@pytest.mark.parametrize("name", ["~no such user/m.gguf", "a" * 300, "a" * 300 + ".gguf"])
def test_impossible_paths(name: str) -> None:
    assert name in sentence(medge("info", "--model", name), 1)


def test_too_little_memory(tiny: Path) -> None:
    run = medge("serve", "--port", "0", "--model", str(tiny), "--ctx", "1048576", "--slots", "64")
    text = sentence(run, 1)
    assert "MiB are free" in text and "--kv q8_0" in text and "--fit does that" in text


def test_too_little_memory_for_embeddings(tmp_path: Path) -> None:
    path = tiny_gguf.write_bert(tmp_path / "bert.gguf", n_ctx=1 << 19)
    text = sentence(medge("serve", "--port", "0", "--model", str(path), "--ctx", "524288"), 1)
    assert "MiB are free" in text and "With --ctx " in text and "--slots" not in text


def test_templates(tmp_path: Path) -> None:
    told = json.loads(medge("templates", "list", "--json").stdout)
    assert {"differential", "emergency", "exam", "general"} <= {row["id"] for row in told}
    assert "evidence" in medge("templates", "list").stdout.decode()
    shown = medge("templates", "show", "medication", "--language", "zh").stdout.decode()
    assert "medication, version" in shown and "你是一名谨慎的医学助手" in shown
    assert "Did you mean" in sentence(medge("templates", "show", "medicaton"), 1)
    own = tmp_path / "own.toml"
    built_in = Path(template.BUILT_IN / "general.toml").read_text("utf-8")
    own.write_text(built_in, "utf-8")
    assert b"tests pass" in medge("templates", "check", str(own)).stdout
    own.write_text(built_in.replace("version = 1", 'version = "one"'), "utf-8")
    assert f"{own}, line " in sentence(medge("templates", "check", str(own)), 2)
    assert f"{own}, line " in sentence(medge("templates", "list", "--folder", str(tmp_path)), 2)


def test_stats_of_nothing_and_of_a_strange_time(tmp_path: Path) -> None:
    assert b"No request was recorded" in medge("stats", MEDGE_STATE=str(tmp_path)).stdout
    assert json.loads(medge("stats", "--json", MEDGE_STATE=str(tmp_path)).stdout)["n"] == 0
    for span in ("soon", "5", "-1h", "1e9d"):
        assert f"--since {span}" in sentence(medge("stats", f"--since={span}"), 2)


def test_stats(tmp_path: Path) -> None:
    recorded = Records(tmp_path, {"model": "tiny"})
    for i in range(1, 21):
        timing = Timing(0.0, i / 10, 2.0, (i / 10, i / 10 + 0.05), 40, 8, 2, None)
        recorded.write(Done("r", "stop", timing), {})
    text = medge("stats", MEDGE_STATE=str(tmp_path), COLUMNS="100").stdout.decode()
    assert "20 requests" in text and "20 stop" in text and "first token" in text and "50" in text
    told = json.loads(medge("stats", "--json", "--since", "1h", MEDGE_STATE=str(tmp_path)).stdout)
    assert told["n"] == 20 and told["percentiles"]["ttft_s"]["p50"] == pytest.approx(1.05)


def test_a_plan(tiny: Path) -> None:
    words = ("plan", str(tiny), "--ctx", "4096", "--slots", "2")
    told = json.loads(medge(*words, "--json").stdout)
    assert told["fits"] and told["exact"] and told["total_bytes"] == sum(told["parts"].values())
    assert told["total_bytes"] < told["available_bytes"]
    assert told["less"][0]["settings"] == "--kv q8_0"
    text = medge(*words).stdout.decode()
    assert "It fits." in text and "2 slots of 4,096 tokens" in text and "KV memory" in text
    large = ("plan", str(tiny), "--ctx", "1048576", "--slots", "64")
    text = medge(*large).stdout.decode()
    assert "It does not fit." in text and text.count("fits; --fit takes it") == 1
    assert json.loads(medge(*large, "--json").stdout)["fits"] is False
    assert "none.gguf does not exist" in sentence(medge("plan", "none.gguf"), 1)


@pytest.mark.parametrize("command", [("ask", "hi"), ("chat",)])
def test_an_embedding_model_writes_no_text(command: tuple[str, ...], tiny_bert: Path) -> None:
    text = sentence(medge(*command, "--model", str(tiny_bert)), 2)
    assert "tiny-bert is an embedding model" in text and "--model" in text


@pytest.mark.parametrize(
    ("fixture", "embeddings"), [("tiny", False), ("tiny_mean", True), ("tiny_bert", True)]
)
def test_info_tells_embedding_models(fixture: str, embeddings: bool, request: pytest.FixtureRequest) -> None:
    run = medge("info", "--json", "--model", str(request.getfixturevalue(fixture)))
    assert json.loads(run.stdout)["model"]["embeddings"] is embeddings


def test_a_port_in_use(tiny: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        text = sentence(medge("serve", "--model", str(tiny), "--port", port), 2)
    assert port in text and "--port" in text


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "clinic.local"])
def test_others_need_a_key(tiny: Path, host: str) -> None:
    text = sentence(medge("serve", "--model", str(tiny), "--host", host), 2)
    assert f"--host {host}" in text and "--api-key" in text


def test_a_host_that_is_not_here(tiny: Path) -> None:
    run = medge("serve", "--model", str(tiny), "--host", "192.0.2.1", "--port", "0", "--api-key", "k")
    assert "192.0.2.1" in sentence(run, 2)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--threads", "1000"), "--threads"),
        (("--ctx", "1"), "--ctx"),
        (("--kv", "q4_0"), "--kv: 'q4_0'"),
        (("--model", ""), "--model"),
    ],
)
def test_values_out_of_range(flags: tuple[str, ...], expected: str) -> None:
    assert expected in sentence(medge("ask", "hi", *flags), 2)


def test_a_variable_and_a_file_are_named(tmp_path: Path) -> None:
    assert "environment variable MEDGE_SLOTS" in sentence(medge("info", MEDGE_SLOTS="0"), 2)
    file = tmp_path / "my.toml"
    file.write_text("kv = 8\n")
    assert "kv in " in sentence(medge("info", "--config", str(file)), 2)
    assert "MEDGE_SLOTS?" in sentence(medge("info", MEDGE_SLOT="2"), 2)


@pytest.mark.parametrize(
    "arguments", [("serve", "--bogus"), ("ask",), ("frobnicate",), ("ask", "hi", "--max-tokens", "0")]
)
def test_wrong_usage_points_to_the_help(arguments: tuple[str, ...]) -> None:
    run = medge(*arguments)
    said = run.stderr.decode()
    assert run.returncode == 2 and run.stdout == b""
    assert "Traceback" not in said and "help" in said


def test_thoughts_stay_out_of_a_pipe(tmp_path: Path) -> None:
    model = tiny_gguf.write(tmp_path / "thinker.gguf", chat_template=tiny_gguf.R1_CHAT_TEMPLATE, n_ctx=8192)
    words = ("ask", "What is a fever?", "--model", str(model), "--template", "none", "--seed", "1")
    limits = ("--max-tokens", "60", "--max-thinking-tokens", "20")
    facts = json.loads(medge(*words, *limits, "--json").stdout)
    assert (facts["n_thoughts"], facts["thoughts_end"], facts["n_generated"]) == (20, "budget", 60)
    run = medge(*words, *limits)
    assert run.stdout.decode() == facts["answer"] + "\n"
    assert "".join(facts["thoughts"].split()) in "".join(run.stderr.decode().split())
    assert "20 of them thoughts, cut at their limit" in run.stderr.decode()
    without = json.loads(medge(*words, "--max-thinking-tokens", "0", "--max-tokens", "9", "--json").stdout)
    assert "thoughts" not in without and without["n_generated"] == 9
    assert "circles" in medge(*words, *limits, "--temperature", "0").stderr.decode()


@pytest.mark.parametrize("question", ["", "  \n\t"])
def test_an_empty_question(question: str, tiny: Path) -> None:
    assert "empty" in sentence(medge("ask", question, "--model", str(tiny)), 2)
    assert "empty" in sentence(medge("ask", "-", "--model", str(tiny), stdin=question.encode()), 2)


@unix
def test_bytes_that_are_no_text(tiny: Path) -> None:
    assert "UTF-8" in sentence(medge("ask", b"\xff\xfe", "--model", str(tiny)), 2)
    for errors in ("strict", "surrogateescape"):
        run = medge("ask", "-", "--model", str(tiny), stdin=b"\xff", PYTHONIOENCODING=f"utf-8:{errors}")
        assert "UTF-8" in sentence(run, 2)


def test_a_question_that_is_too_long(tiny: Path) -> None:
    text = sentence(medge("ask", "-", "--model", str(tiny), "--ctx", "64", stdin=b"fever " * 1000), 1)
    assert "64" in text


# -- answers


def test_an_answer_and_its_cost(tiny: Path) -> None:
    run = medge("ask", "Fever?", "--model", str(tiny), "--max-tokens", "8", "--seed", "1")
    assert run.returncode == 0 and run.stdout.endswith(b"\n")
    assert re.search(
        r"8 tokens · first after [\d.]+ s · .* tok/s · \d+ MB · cut at the limit", run.stderr.decode()
    )


def test_json_is_one_object(tiny: Path) -> None:
    arguments = ("--model", str(tiny), "--max-tokens", "8", "--seed", "1", "--json")
    run = medge("ask", "Fever?", *arguments)
    assert run.returncode == 0 and run.stderr == b"" and run.stdout.count(b"\n") == 1
    record = json.loads(run.stdout)
    assert record["model"] == "tiny" and record["finish_reason"] == "length"
    assert record["n_generated"] == 8 and record["n_prompt"] > 6 and record["n_cached"] == 0
    assert 0 <= record["queued_s"] <= record["ttft_s"] <= record["total_s"]
    assert record["tokens_per_s"] > 0 and record["peak_memory_bytes"] > 1 << 20

    # One thread and a prompt that is read in one piece: else a busy machine changes the last bits.
    arguments = (*arguments, "--threads", "1", "--template", "none")
    record = json.loads(medge("ask", "Fever?", *arguments).stdout)
    piped = json.loads(medge("ask", "-", *arguments, stdin="\ufeffFever?".encode()).stdout)
    assert piped["answer"] == record["answer"], "a pipe asks the same, with a byte order mark or without"


def test_a_question_goes_through_a_template(tiny: Path) -> None:
    pain = "My father has crushing chest pain and is sweating"
    run = medge("ask", pain, "--max-tokens", "4", MEDGE_MODEL=str(tiny))
    text = run.stdout.decode()
    assert text.startswith("This may be an emergency: ") and run.returncode == 0
    assert text.endswith("Written by the program tiny. It is not a diagnosis.\n")
    record = json.loads(medge("ask", pain, "--json", "--max-tokens", "4", MEDGE_MODEL=str(tiny)).stdout)
    assert (record["template"], record["red_flags"]) == ("emergency", ["chest_pain"])
    assert record["answer"].startswith(record["notice"])
    run = medge("ask", pain, "--template", "none", "--max-tokens", "4", MEDGE_MODEL=str(tiny))
    assert b"emergency" not in run.stdout and run.returncode == 0
    run = medge("ask", pain, "--template", "patients", MEDGE_MODEL=str(tiny))
    assert "Did you mean patient?" in sentence(run, 1)


def test_classify() -> None:
    text = "¿Cuál es la dosis de amoxicilina para un niño de 12 kg?"
    found = json.loads(medge("classify", text, "--json").stdout)
    assert list(found) == ["template", "language", "audience", "confidence", "why", "red_flags"]
    assert (found["template"], found["language"], found["red_flags"]) == ("medication", "es", [])
    told = medge("classify", "My chest pain goes down the left arm and I sweat").stdout.decode()
    assert "emergency" in told and "chest_pain" in told
    assert json.loads(medge("classify", "", "--json").stdout)["template"] == "general"


def test_settings_reach_the_engine(tiny: Path) -> None:
    run = medge(
        "ask", "Fever?", "--template", "none", "--json",
        MEDGE_MODEL=str(tiny), MEDGE_CTX="64", MEDGE_KV="q8_0", MEDGE_THREADS="1",
    )  # fmt: skip
    record = json.loads(run.stdout)
    assert record["n_prompt"] + record["n_generated"] <= 65, "the answer ends with the context"


def test_a_terminal_without_the_letters(tiny: Path) -> None:
    run = medge("ask", "Fever?", "--model", str(tiny), "--max-tokens", "8", PYTHONIOENCODING="ascii")
    assert run.returncode == 0, run.stderr.decode()


def test_info_as_json_and_for_people(tiny: Path) -> None:
    facts = json.loads(medge("info", "--json", "--model", str(tiny)).stdout)
    assert facts["machine"]["n_cores"] >= 1 and facts["versions"]["medge"] == __version__
    model = facts["model"]
    assert model["name"] == "tiny" and model["path"] == str(tiny) and not model["demo"]
    assert model["architecture"] == "llama" and model["file_bytes"] == tiny.stat().st_size
    text = medge("info", "--model", str(tiny)).stdout.decode()
    assert "llama" in text and "MB" in text and "None" not in text


def test_a_name_with_brackets_is_no_markup(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "a[red]b[i].gguf"
    path.write_bytes(tiny.read_bytes())
    assert "a[red]b[i]" in medge("info", "--model", str(path)).stdout.decode()
    missing = sentence(medge("info", "--model", str(tmp_path / "x[red].gguf")), 1)
    assert "x[red].gguf" in missing


@unix
def test_a_reader_that_has_enough(tiny: Path) -> None:
    process = subprocess.Popen(
        [*MEDGE, "ask", "Fever?", "--model", str(tiny), "--max-tokens", "2000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdout and process.stderr
    assert process.stdout.read(1)
    process.stdout.close()
    with process.stderr:
        said = process.stderr.read()
    process.wait(30)
    assert b"Traceback" not in said and b"Error" not in said


@unix
def test_ctrl_c_ends_an_answer_at_once(tiny: Path) -> None:
    process = subprocess.Popen(
        [*MEDGE, "ask", "Fever?", "--model", str(tiny), "--max-tokens", "100000", "--ctx", "65536"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    assert process.stdout
    assert process.stdout.read(1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the engine's process hears it too
    _, said = process.communicate(timeout=15)
    assert process.returncode == 130, said.decode()
    assert b"Traceback" not in said


# -- a conversation in a terminal


class Terminal:
    """`medge chat` on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        import fcntl
        import termios

        self.seen = ""
        self._fd, inside = os.openpty()
        self.process = subprocess.Popen(
            [*MEDGE, "chat", *arguments],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            env={**ENVIRONMENT, "TERM": "dumb"},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(inside)

    def until(self, pattern: str, timeout_s: float = 30) -> str:
        """Read until `pattern` is there; what came before it and itself is gone afterwards."""
        end = time.monotonic() + timeout_s
        while not (match := re.search(pattern, self.seen)):
            assert time.monotonic() < end, f"no {pattern!r} in {self.seen!r}"
            if select.select([self._fd], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self._fd, 65536).decode("utf-8", "replace")
                except OSError:  # the other end is closed
                    raise AssertionError(f"it ended without {pattern!r}: {self.seen!r}") from None
        before, self.seen = self.seen[: match.end()], self.seen[match.end() :]
        return before

    def type(self, text: str | bytes) -> None:
        time.sleep(0.2)  # a key within microseconds of the prompt is lost in Python's own input()
        os.write(self._fd, text if isinstance(text, bytes) else text.encode())

    def end(self, timeout_s: float = 10) -> int:
        until = time.monotonic() + timeout_s
        while self.process.poll() is None and time.monotonic() < until:
            if select.select([self._fd], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self._fd, 65536).decode("utf-8", "replace")
        status = self.process.poll()
        assert status is not None, f"it does not end: {self.seen!r}"
        assert "Traceback" not in self.seen
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._fd)


@pytest.fixture
def chat(tiny: Path) -> Iterator[Any]:
    opened: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        opened.append(Terminal("--model", str(tiny), *arguments))
        opened[-1].until(r"/quit ends\.[^>]*> ")
        return opened[-1]

    yield start
    for terminal in opened:
        terminal.close()


@unix
def test_a_conversation(chat: Any) -> None:
    terminal = chat("--max-tokens", "12")
    for question in ("Fever?", "Since when?"):
        terminal.type(question + "\n")
        terminal.until(r"12 tokens · first after [\d.]+ s")
        terminal.until("\n> ")
    terminal.type("/help\n")
    terminal.until(r"/help is no command\. There are /reset and /quit\.")
    terminal.type("/reset\n")
    terminal.until("Forgotten")
    terminal.type("\n")
    terminal.type(b"\xff\xfe\n")
    terminal.until("not valid UTF-8")
    terminal.type("Again?\n")
    terminal.until("12 tokens")
    terminal.until("\n> ")
    terminal.type("/quit\n")
    assert terminal.end() == 0


@unix
def test_ctrl_c_stops_the_answer_and_not_the_conversation(chat: Any) -> None:
    terminal = chat("--max-tokens", "100000", "--ctx", "65536")
    for _ in range(2):
        terminal.type("Fever?\n")
        terminal.until("Fever[^>]*\n.{20}")
        terminal.type("\x03")
        terminal.until("Stopped")
        terminal.until("\n> ")
    terminal.type("\x04")
    assert terminal.end() == 0


@unix
@pytest.mark.parametrize("key", ["\x03", "\x04"], ids=["ctrl-c", "ctrl-d"])
def test_a_key_at_the_prompt_ends_the_conversation(chat: Any, key: str) -> None:
    terminal = chat()
    terminal.type(key)
    assert terminal.end() == 0


@unix
def test_a_turn_that_does_not_fit_leaves_the_conversation(chat: Any) -> None:
    terminal = chat("--ctx", "64", "--max-tokens", "4", "--template", "none")
    terminal.type("fever " * 100 + "\n")
    terminal.until("medge: .*64")
    terminal.until("\n> ")
    terminal.type("Fever?\n")
    terminal.until("4 tokens")
    terminal.type("/quit\n")
    assert terminal.end() == 0


@unix
def test_a_killed_conversation_leaves_no_engine(chat: Any) -> None:
    terminal = chat()
    family = psutil.Process(terminal.process.pid).children(recursive=True)
    assert family
    terminal.process.kill()
    terminal.process.wait()
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
