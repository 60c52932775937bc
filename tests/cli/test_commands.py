"""Every command as a whole: help with an example, -o where something is printed, one line for what is wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from raftmft.cli.main import COMMANDS, cli

RAFTMFT = [sys.executable, "-m", "raftmft"]
FOREGROUND = {"dev", "node"}  # they print logs, until they are stopped
SCRIPT = {"completion"}  # it prints a program for a shell


def walk(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None, (*words, name)
            yield from walk(child, (*words, name))


ALL = dict(walk(cli))
LEAVES = {words: command for words, command in ALL.items() if not isinstance(command, click.Group)}


def ids(words: tuple[str, ...]) -> str:
    return " ".join(words) or "raftmft"


def run(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("RAFTMFT")}
    return subprocess.run([*RAFTMFT, *words], capture_output=True, text=True, timeout=30, env={**plain, **(env or {})},
                          stdin=subprocess.DEVNULL)


def test_the_walk_sees_everything() -> None:
    assert len(LEAVES) > 20 and {words[0] for words in LEAVES} == set(COMMANDS)
    for line in ("member list", "user key remove", "sessions kill", "config set", "file show", "audit tail",
                 "audit export", "audit verify", "admin-token revoke", "version"):
        assert tuple(line.split()) in LEAVES, line


@pytest.mark.parametrize("words", ALL, ids=ids)
def test_help_says_what_it_does_and_gives_an_example(words: tuple[str, ...]) -> None:
    command = ALL[words]
    assert command.help and command.get_short_help_str(), words
    assert command.epilog and command.epilog.startswith("Example: "), words
    assert " ".join(("raftmft", *words)) in command.epilog, "the example is of this command"
    for param in command.params:
        if isinstance(param, click.Option) and param.name not in ("output", "help"):
            assert param.help or re.search(r"--\w+", " ".join(param.opts)), param.opts
    text = command.get_help(click.Context(command, info_name="raftmft"))
    assert "Usage:" in text and "Example:" in text


@pytest.mark.parametrize("words", LEAVES, ids=ids)
def test_examples_use_options_that_exist(words: tuple[str, ...]) -> None:
    command = LEAVES[words]
    known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {"--help"}
    own = re.split(r"[|>]", str(command.epilog).split(" ".join(("raftmft", *words)), 1)[1])[0]
    assert set(re.findall(r"(?<!\w)--?[a-z][\w-]*", own)) <= known


@pytest.mark.parametrize("words", [w for w in LEAVES if w[0] not in FOREGROUND | SCRIPT], ids=ids)
def test_whatever_prints_prints_json_too(words: tuple[str, ...]) -> None:
    (output,) = [param for param in LEAVES[words].params if param.name == "output"]
    assert set(output.opts) == {"-o", "--output"}
    assert isinstance(output.type, click.Choice) and list(output.type.choices) == ["table", "json"]


def test_help_of_a_process_is_quick_to_print_and_complete() -> None:
    done = run("--help")
    assert done.returncode == 0 and all(name in done.stdout for name in COMMANDS)
    assert run("-h").stdout == done.stdout


# --- completion ------------------------------------------------------------------------------------------------------
def test_bash_completes_commands_subcommands_and_options(tmp_path: Path) -> None:
    program = tmp_path / "raftmft"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m raftmft "$@"\n')
    program.chmod(0o755)
    script = run("completion", "bash").stdout

    def complete(*words: str) -> set[str]:
        listed = " ".join(f"'{word}'" for word in ("raftmft", *words))
        asked = (f'{script}\nCOMP_WORDS=({listed}); COMP_CWORD={len(words)}; _raftmft_completion raftmft; '
                 'printf "%s\\n" "${COMPREPLY[@]}"')
        done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, timeout=30,
                              env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
        assert done.returncode == 0, done.stderr
        return set(done.stdout.split())

    assert complete("sess") == {"sessions"}
    assert complete("sessions", "") == {"list", "kill"}
    assert "--follow" in complete("audit", "tail", "--")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_their_script(shell: str) -> None:
    done = run("completion", shell)
    assert done.returncode == 0 and "_RAFTMFT_COMPLETE" in done.stdout and shell in done.stdout


def test_an_unknown_shell_is_wrong_usage() -> None:
    assert run("completion", "cmd").returncode == 2


# --- what is wrong ---------------------------------------------------------------------------------------------------
def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """What an error says; nothing else may be there."""
    assert done.stdout == "" and done.stderr.startswith("raftmft: ") and done.stderr.count("\n") == 1, done
    return done.stderr


def wrong_values(command: click.Command) -> Iterator[tuple[str, ...]]:
    """For each typed option and argument, words that give it a value of another type."""
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    fill = {param.name: _fitting(param) for param in arguments}
    for param in command.params:
        for value in _unfitting(param):
            if isinstance(param, click.Argument):
                yield tuple(value if other is param else fill[other.name] for other in arguments)
            else:
                yield (*(fill[other.name] for other in arguments), f"{max(param.opts, key=len)}={value}")


def _fitting(param: click.Parameter) -> str:
    return str(param.type.choices[0]) if isinstance(param.type, click.Choice) else (
        "1" if isinstance(param.type, click.types.IntParamType) else "x")


def _unfitting(param: click.Parameter) -> list[str]:
    if getattr(param, "is_flag", False):
        return ["yes"]
    if isinstance(param.type, click.Choice):
        return ["neither"]
    if isinstance(param.type, (click.types.IntParamType, click.types.FloatParamType)):
        return ["many", "-5", "", "1e400x"]
    if param.type.name == "size":
        return ["many", "-5GiB", "5 XiB", "NaN", "9" * 400]
    if isinstance(param.type, click.Path) and param.type.exists or isinstance(param.type, click.File):
        return ["/nowhere/at/all"]
    return []


def wrong_calls() -> list[tuple[str, ...]]:
    calls = [(*words, *wrong) for words, command in LEAVES.items() for wrong in wrong_values(command)]
    calls += [(*words, "--no-such-option") for words in ALL if words]
    calls += [(*words, "nonsense") for words, command in ALL.items() if isinstance(command, click.Group)]
    calls += [words for words, command in LEAVES.items()
              if any(isinstance(param, click.Argument) and param.required for param in command.params)]
    return calls


Called = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Called:
    """Runs raftmft in this process: hundreds of processes would take minutes."""
    import raftmft.cli.main as entry

    for name in list(os.environ):
        if name.startswith("RAFTMFT"):
            monkeypatch.delenv(name)

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["raftmft", *words])
        with pytest.raises(SystemExit) as ended:
            entry.main()
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess(words, int(ended.value.code or 0), out, err)

    return call


def test_wrong_types_and_values_get_one_line_and_exit_code_2(called: Called) -> None:
    calls = wrong_calls()
    assert len(calls) > 150
    for words in calls:
        done = called(*words)
        assert done.returncode == 2, (words, done)
        assert "which node" not in one_line(done), words


def test_a_command_for_a_node_says_which_it_needs(called: Called) -> None:
    for words, command in LEAVES.items():
        names = {param.name for param in command.params}
        if "admin" not in names or "data_dir" not in names:
            continue
        arguments = [_fitting(p) for p in command.params if isinstance(p, click.Argument)]
        required = [word for p in command.params if isinstance(p, click.Option) and p.required
                    for word in (p.opts[0], _fitting(p))]
        if words == ("user", "key", "add"):
            arguments = ["x", __file__]
        done = called(*words, *required, *arguments)
        assert done.returncode == 2 and "--data-dir" in one_line(done), (words, done)
        done = called(*words, *required, *arguments, *(["--yes"] if "yes" in names else []), "--data-dir", "/nowhere")
        assert done.returncode in (2, 5), (words, done)
        if done.returncode == 5:
            assert "/nowhere" in one_line(done)


def test_text_that_is_no_text_is_one_line(called: Called) -> None:
    for words in (("sessions", "list", "--user", "\udcff"), ("user", "show", "\udcff"),
                  ("config", "set", "x", "\udcff")):
        done = called(*words, "--data-dir", "/nowhere")
        assert done.returncode in (2, 5), done
        one_line(done)


def test_what_is_typed_counts_more_than_the_environment(called: Called, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAFTMFT_DATA_DIR", "/from/environment")
    monkeypatch.setenv("RAFTMFT_ADMIN", "http://127.0.0.1:2")
    for words, where in (((), "/from/environment"), (("--admin", "http://127.0.0.1:1"), "127.0.0.1:1"),
                         (("--data-dir", "/typed"), "/typed")):
        done = called("user", "list", *words)
        assert done.returncode == 5 and where in one_line(done)
    done = called("user", "list", "--data-dir", "/typed", "--admin", "http://127.0.0.1:1")
    assert done.returncode == 2 and "not both" in one_line(done)
