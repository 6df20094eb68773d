"""No SQL is built from strings: the check itself, on src/ and on what it has to find."""

# ruff: noqa: E501  # a snippet is one line

from __future__ import annotations

import ast
import re
import tokenize
from pathlib import Path

import pytest

from tools.check_sql import ALLOWED, check, main

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"
HEAD = """
from typing import Final
import sqlalchemy as sa
from sqlalchemy import Select, literal_column, select, text
from kiseki.clients.postgres import quoted
_TABLE: Final = "accounts"
_COLUMNS: Final = ["id", "name"]
"""
BUILT = {
    "f-string": "def f(c, name): c.execute(f\"SELECT * FROM accounts WHERE name = '{name}'\")",
    "f-string in a variable": 'def f(c, n):\n    statement = f"DELETE FROM accounts WHERE n = {n}"\n    c.execute(statement)',
    "f-string never run here": 'def f(n): return f"DELETE FROM accounts WHERE n = {n}"',
    "lower case": 'def f(n): return f"select id from accounts where n = {n}"',
    "percent": "def f(c, n): c.execute(\"SELECT id FROM accounts WHERE n = '%s'\" % n)",
    "percent with a tuple": 'def f(c, n): c.execute("SELECT id FROM %s WHERE n = %s" % (_TABLE, n))',
    "format": 'def f(c, n): c.execute("SELECT id FROM accounts WHERE n = {}".format(n))',
    "format by name": 'def f(c, n): c.execute("SELECT id FROM {t}".format(t=n))',
    "plus": 'def f(c, n): c.execute("SELECT id FROM accounts WHERE n = " + n)',
    "plus, several": 'def f(c, n): c.execute("SELECT id FROM " + _TABLE + " WHERE n = \'" + n + "\'")',
    "plus, grown": 'def f(c, n):\n    s = "SELECT id FROM accounts WHERE 1=1"\n    s += " AND n = " + n\n    c.execute(s)',
    "join": 'def f(c, parts): c.execute(" ".join(["SELECT id FROM accounts WHERE", *parts]))',
    "join of a generator": 'def f(c, a): c.execute("SELECT " + ", ".join(f"{x}" for x in a) + " FROM accounts")',
    "replace": 'def f(c, n): c.execute("SELECT id FROM accounts WHERE n = :n".replace(":n", n))',
    "executemany": 'def f(c, t): c.executemany(f"INSERT INTO {t} VALUES (?)", [(1,)])',
    "executescript": 'def f(c, t): c.executescript(f"DROP TABLE {t};")',
    "fetch": 'async def f(c, t): return await c.fetch(f"SELECT id FROM {t}")',
    "fetchval": 'async def f(c, t): return await c.fetchval("SELECT count(*) FROM " + t)',
    "fetchrow": 'async def f(c, t): return await c.fetchrow("SELECT id FROM {}".format(t))',
    "exec_driver_sql": 'def f(c, v): c.exec_driver_sql(f"PRAGMA user_version = {v}")',
    "prepare": 'async def f(c, t): await c.prepare(f"SELECT id FROM {t}")',
    "cursor": 'async def f(c, t): return c.cursor(f"SELECT id FROM {t}")',
    "text": "def f(n): return text(f\"name = '{n}'\")",
    "text of a module": 'def f(n): return sa.text("name = " + n)',
    "literal_column": 'def f(n): return select(literal_column(f"coalesce({n}, 0)"))',
    "a keyword": 'def f(c, n): c.execute(statement=f"name = {n}")',
    "no verb": 'def f(c, n): c.execute(f"{n}")',
    "a parameter": "def f(c, statement): c.execute(statement)",
    "an unknown attribute": "def f(c, other): c.execute(other.statement)",
    "an unknown function": "from elsewhere import make\ndef f(c): c.execute(make())",
    "through a function": 'def _s(n): return f"SELECT id FROM {n}"\ndef f(c, n): c.execute(_s(n))',
    "through a private parameter": 'def _run(c, s): c.execute(s)\ndef f(c, n): _run(c, f"{n}")',
    "a private function handed on": "def _run(c, s): c.execute(s)\ndef f(c, go): go(_run)",
    "through an attribute": 'class A:\n    def __init__(self, n): self._s = f"SELECT id FROM {n}"\n    def go(self, c): c.execute(self._s)',
    "a text in braces": 'def f(c, n): c.execute(f"PRAGMA {n!r}")',
    "a format that is no number": 'def f(c, n): c.execute(f"PRAGMA user_version={n:s}")',
    "conditional": 'def f(c, n, d): c.execute("SELECT 1" if d else f"SELECT {n}")',
    "another quoted": 'def quoted(n): return n\ndef f(c, n): c.execute(f"DROP SCHEMA {__import__(n)}")',
    "its own quoting": "def _mine(n): return '\"' + n + '\"'\ndef f(c, n): c.execute(f\"DROP SCHEMA {_mine(n)}\")",
    "set by a function": '_S = "SELECT 1"\ndef g(n):\n    global _S\n    _S = n\ndef f(c): c.execute(_S)',
    "through a private class": 'class _T:\n    def __init__(self, t): self.s = f"SELECT id FROM {t}"\ndef f(c, n): c.execute(_T(n).s)',
    "a class that others make": 'class T:\n    def __init__(self, t): self.s = f"SELECT id FROM {t}"\nX = T("accounts")',
    "a template": 'from string import Template\ndef f(c, n): c.execute(Template("SELECT $n").substitute(n=n))',
    "a walrus": 'def f(c, n): c.execute(s := f"SELECT {n}")',
    "a loop": 'def f(c, tables):\n    for t in tables: c.execute(f"DROP TABLE {t}")',
    "a lambda": 'f = lambda c, n: c.execute("SELECT " + n)',
    "in a default": 'def f(c, n):\n    def g(s=f"SELECT id FROM {n}"): c.execute(s)\n    g()',
    "str of a thing": 'def f(c, n): c.execute("SELECT id FROM accounts LIMIT " + str(n))',
}
FINE = {
    "parameters": 'def f(c, n): c.execute("SELECT id FROM accounts WHERE n = ?", (n,))',
    "constants": 'def f(c): c.execute(f"SELECT {_COLUMNS[0]} FROM {_TABLE}")',
    "joined constants": '_ALL: Final = f"SELECT {\', \'.join(_COLUMNS)} FROM {_TABLE}"\ndef f(c): c.execute(_ALL)',
    "quoted": 'def f(c, n): c.execute(f"DROP SCHEMA {quoted(n)} CASCADE")',
    "quoted, plus": 'def f(c, n): c.execute("CREATE SCHEMA " + quoted(n))',
    "quoted in a local": 'def f(c, n):\n    place = quoted(n)\n    c.execute(f"SELECT id FROM {place}.accounts")',
    "a whole number": 'def f(c, n): c.execute(f"PRAGMA user_version={n:d}")',
    "a choice of constants": 'def f(c, d): c.execute("BEGIN IMMEDIATE" if d else "BEGIN")',
    "a private parameter": 'def _run(c, s): c.execute(s)\ndef f(c): _run(c, "SELECT 1")',
    "a loop over constants": '_S = ("SELECT 1", "SELECT 2")\ndef f(c):\n    for s in _S: c.execute(s)',
    "an object": "def f(c, t): c.execute(select(t).where(t.c.n == 1))",
    "a parameter that is an object": "def f(c, s: Select[tuple[int]]): c.execute(s)",
    "a sentence": 'def f(n): return f"update of {n} was refused; select another"',
    "a log line": 'def f(log, n): log.info(f"With {n} it went on")',
    "a private class of constants": 'class _T:\n    def __init__(self, t): self.s = f"SELECT id FROM {t}"\n_X: Final = _T("a")\nclass B:\n    def __init__(self, t: _T): self._t = t\n    def go(self, c): c.execute(self._t.s)',
    "text": 'def f(): return text("name = :name")',
    "its own attribute": 'class A:\n    def __init__(self, n): self._s = f"SELECT id FROM {quoted(n)}"\n    def go(self, c): c.execute(self._s)',
}  # fmt: skip


def findings(tmp_path: Path, snippet: str) -> list[str]:
    (tmp_path / "planted.py").write_text(HEAD + snippet + "\n", encoding="utf-8")
    return [str(finding) for finding in check(tmp_path, allowed={})]


def test_src_builds_no_sql_from_strings() -> None:
    assert [str(finding) for finding in check(SOURCE)] == []


@pytest.mark.parametrize("snippet", BUILT.values(), ids=BUILT.keys())
def test_what_is_built_is_found(tmp_path: Path, snippet: str) -> None:
    found = findings(tmp_path, snippet)
    assert found
    assert all(line.startswith("planted.py:") for line in found)


@pytest.mark.parametrize("snippet", FINE.values(), ids=FINE.keys())
def test_what_is_not_built_is_left_alone(tmp_path: Path, snippet: str) -> None:
    assert findings(tmp_path, snippet) == []


def test_another_function_called_quoted_vets_nothing(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(
        'def quoted(n): return n\ndef f(c, n): c.execute(f"DROP SCHEMA {quoted(n)}")\n', encoding="utf-8"
    )
    assert check(tmp_path, allowed={})


def test_constants_are_followed_to_other_modules_and_no_further_than_they_are_constant(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('GOOD = "SELECT 1"\nBAD = f"SELECT {input()}"\n', encoding="utf-8")
    (tmp_path / "b.py").write_text("from a import GOOD, BAD\ndef f(c):\n    c.execute(GOOD)\n", encoding="utf-8")
    assert [finding.path for finding in check(tmp_path, allowed={})] == ["a.py"]
    (tmp_path / "b.py").write_text("from a import GOOD, BAD\ndef f(c):\n    c.execute(BAD)\n", encoding="utf-8")
    assert [finding.path for finding in check(tmp_path, allowed={})] == ["a.py", "b.py"]


def test_an_allowance_holds_for_its_function_alone_and_must_be_needed(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        'def f(c, n): c.execute(f"SELECT {n}")\ndef g(c, n): c.execute(f"SELECT {n}")\n', encoding="utf-8"
    )
    assert {finding.where for finding in check(tmp_path, allowed={("a.py", "f"): "for this test"})} == {"g"}
    needless = check(tmp_path, allowed={("a.py", "f"): "", ("a.py", "g"): "", ("a.py", "gone"): ""})
    assert [finding.where for finding in needless] == ["gone"]


def test_every_allowance_says_why_in_one_line() -> None:
    for place, why in ALLOWED.items():
        assert len(why) > 20, place
        assert "\n" not in why, place


def test_whatever_the_linter_is_told_to_pass_over_is_looked_at_here() -> None:
    """Each `noqa: S608` stands on text that this check reads as SQL, and finds to be constant."""
    for path in sorted(SOURCE.rglob("*.py")):
        with path.open("rb") as source:
            comments = [token for token in tokenize.tokenize(source.readline) if token.type == tokenize.COMMENT]
        silenced = [token.start[0] for token in comments if re.search(r"noqa:.*S608", token.string)]
        if not silenced:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        ends = {node.end_lineno for node in ast.walk(tree) if isinstance(node, ast.JoinedStr | ast.BinOp)}
        whole_file = [line for line in silenced if line < 10]
        assert whole_file or set(silenced) <= ends, path


def test_the_command_prints_and_exits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.py").write_text('def f(c, n): c.execute(f"SELECT {n}")\n', encoding="utf-8")
    assert main([str(tmp_path)]) == 1
    assert "a.py:1: " in capsys.readouterr().out
    assert main([]) == 0
