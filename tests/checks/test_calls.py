"""What the source never does: run text as code, unpickle, trust any certificate, draw secrets from `random`, and so on.

Judged by the syntax tree. An allowance names the file and the call, and says why; one that is not needed fails.
"""

# ruff: noqa: E501  # a value is one line, or one of many on it

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"

FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "breakpoint", "input",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "dill.loads",
    "yaml.load", "yaml.unsafe_load", "os.system", "os.popen", "os.spawnl", "os.spawnv", "commands.getoutput",
    "tempfile.mktemp", "hashlib.md5", "hashlib.sha1", "ssl._create_unverified_context", "telnetlib.Telnet",
    "xml.etree.ElementTree.parse", "xml.etree.ElementTree.fromstring", "asyncio.create_subprocess_shell",
    "subprocess.getoutput", "subprocess.getstatusoutput", "jwt.decode", "logging.config.listen",
}  # fmt: skip
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "telnetlib", "ftplib", "xmlrpc", "cgi", "crypt", "jwt"}
FORBIDDEN_WORDS = {"CERT_NONE", "PROTOCOL_TLSv1", "PROTOCOL_SSLv23", "TLSv1_1", "OP_NO_TLSv1_3"}
FALSE_KEYWORDS = {"verify", "check_hostname", "verify_ssl", "ssl_verify"}
RANDOM_FOR_PAUSES = {"random.uniform", "random.random", "random.Random"}
"""How long to wait before another try may be guessed; nothing else is drawn from `random`, and a secret never is."""
ALLOWED: dict[tuple[str, str], str] = {
    ("kiseki/cli/banner.py", "0.0.0.0"): "shown to people in place of an address, not bound",
}


def named(node: ast.AST) -> str:
    """The dotted name of a function."""
    if isinstance(node, ast.Attribute):
        return f"{named(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def found(path: str, tree: ast.AST) -> Iterator[tuple[str, str, int]]:
    """What is forbidden, as (path, what, line)."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Call):
            name = named(node.func)
            open_use = any(keyword.arg == "usedforsecurity" for keyword in node.keywords)
            if name in FORBIDDEN_CALLS and not open_use:
                yield path, name, line
            for keyword in node.keywords:
                constant = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if keyword.arg == "shell" and constant is not False:
                    yield path, "shell", line
                if keyword.arg in FALSE_KEYWORDS and constant is False:
                    yield path, str(keyword.arg), line
                if keyword.arg == "ssl" and constant is False:
                    yield path, "ssl=False", line
            if name.split(".")[-1] in ("debug", "info", "warning", "error", "exception", "critical", "log"):
                for argument in node.args:
                    for part in ast.walk(argument):
                        if isinstance(part, ast.Attribute | ast.Name) and named(part).split(".")[-1] in (
                            "authorization", "credentials", "password", "secret", "token", "headers", "body",
                        ):  # fmt: skip
                            yield path, f"log of {named(part).split('.')[-1]}", line
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                falsy = isinstance(node.value, ast.Constant) and node.value.value is False
                if isinstance(target, ast.Attribute) and target.attr == "check_hostname" and falsy:
                    yield path, "check_hostname", line
        elif isinstance(node, ast.Attribute):
            if node.attr in FORBIDDEN_WORDS:
                yield path, node.attr, line
            if isinstance(node.value, ast.Name) and node.value.id == "random" and named(node) not in RANDOM_FOR_PAUSES:
                yield path, named(node), line
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
            for module in modules:
                if module.split(".")[0] in FORBIDDEN_MODULES or module.startswith("xml."):
                    yield path, module, line
                if module == "random" and isinstance(node, ast.ImportFrom):
                    yield path, "from random import", line
        elif isinstance(node, ast.Constant) and node.value == "0.0.0.0":
            yield path, str(node.value), line


def everything() -> list[tuple[str, str, int]]:
    paths = [(path.relative_to(SOURCE).as_posix(), path) for path in sorted(SOURCE.rglob("*.py"))]
    return [one for name, path in paths for one in found(name, ast.parse(path.read_text(encoding="utf-8")))]


def test_the_source_does_nothing_of_it_without_a_reason() -> None:
    rest = [f"{path}:{line}: {what}" for path, what, line in everything() if (path, what) not in ALLOWED]
    assert rest == []


def test_every_allowance_is_needed_still() -> None:
    places = {(path, what) for path, what, _ in everything()}
    assert ALLOWED.keys() - places == set()


@pytest.mark.parametrize(
    "snippet",
    [
        "eval(x)", "exec(x)", "import pickle", "from marshal import loads", "import os\nos.system(x)", "f(shell=True)",
        "f(shell=unknown)", "get(url, verify=False)", "context.check_hostname = False", "import hashlib\nhashlib.md5(x)",
        "import random\nrandom.choice(x)", "random.randbytes(8)", "from random import choice", "context.verify_mode = ssl.CERT_NONE", "bind('0.0.0.0', 80)",
        "log.info('%s', head.authorization)", "_log.warning(f'{token}')", "import tempfile\ntempfile.mktemp()",
        "connect(ssl=False)", "import xml.etree.ElementTree", "yaml.load(x)",
    ],
)  # fmt: skip
def test_planted_cases_are_found(snippet: str) -> None:
    assert list(found("planted.py", ast.parse(snippet)))


IMPORTER = """
import importlib, pkgutil, sys, threading
import kiseki

OPTIONAL = {"kiseki.__main__"}
names = [module.name for module in pkgutil.walk_packages(kiseki.__path__, "kiseki.") if module.name not in OPTIONAL]
loaded, skipped = [], []
seen = []
watching = False

def ours():
    # Whether the nearest caller that is neither the standard library nor the import system is kiseki.
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(SOURCE):
            return True
        if "site-packages" in path:
            return False
        frame = frame.f_back
    return False

def watch(event, arguments):
    if not watching or event not in EVENTS or not ours():
        return
    if event == "open":
        path, mode = arguments[0], arguments[1] or "r"
        flags = arguments[2] or 0
        if isinstance(path, (str, bytes)) and not any(letter in str(mode) for letter in "wax+") and not flags & 3:
            text = path.decode() if isinstance(path, bytes) else path
            # What an import reads: modules, and what libraries ship beside them.
            if any(text.startswith(prefix) for prefix in PREFIXES):
                return
        seen.append((event, str(path), str(mode)))
    else:
        seen.append((event, str(arguments)[:100], ""))

EVENTS = {"open", "socket.bind", "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.fork", "os.mkdir",
          "_thread.start_new_thread", "sqlite3.connect", "os.remove", "os.rename", "os.putenv", "signal.signal"}
SOURCE = list(kiseki.__path__)[0]
PREFIXES = tuple({SOURCE, sys.prefix, sys.base_prefix, sys.exec_prefix, *[path for path in sys.path if path]})
sys.addaudithook(watch)
for name in names:
    watching = True
    try:
        importlib.import_module(name)
    finally:
        watching = False
    loaded.append(name)
assert threading.active_count() == 1, threading.enumerate()
print(len(loaded), seen)
sys.exit(1 if seen or len(loaded) < 150 else 0)
"""


def test_importing_every_module_opens_no_file_socket_or_thread() -> None:
    done = subprocess.run(
        [sys.executable, "-B", "-c", IMPORTER], capture_output=True, text=True, timeout=120, check=False, cwd=SOURCE
    )
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
