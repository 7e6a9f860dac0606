"""Statements by a grammar that mixes what is allowed with what is not, and spoils some of them."""

from __future__ import annotations

import random
import re

from schemas.views import VIEWS
from tests.central_store.sql_attempts import DATABASES, FILES, PYTHON, SETTINGS, WRITES, lines

_COLUMNS = sorted({column.name for view in VIEWS.values() for column in view})
_USUAL = [
    "facility",
    "sequence",
    "study_uid",
    "study_date",
    "modality",
    "menu",
    "patient_id_tokens",
    "batch_id",
]
_BAD_TABLES = [
    "f0.rows", "f0.main.studies", "rows", "conflicts", "duckdb_settings", "duckdb_settings()", "pg_class",
    "information_schema.tables", "'{file}'", '"{other}"', "read_text('{file}')", "query('FROM f0.rows')",
    "query_table('f0.rows')", "glob('/*')", "histogram('f0.rows', menu)", "read_duckdb('{other}')", "sqlite_master",
    "(COPY (SELECT 1) TO '{out}')", "(SHOW TABLES)", "job", "studies AT (VERSION => 1)", "pragma_database_list",
]  # fmt: skip
_BAD_CALLS = [
    "getenv('CANARY')", "current_setting('memory_limit')", "getvariable('x')", "nextval('s')", "version()",
    "current_database()", "current_user", "json_serialize_plan('SELECT 1')", "in_search_path('a', 'b')",
    "repeat('x', 999999999)", "lpad('x', 999999999, 'y')", "list_aggregate([1], 'sum')", "write_log('x')",
    "cast_to_type(1, 'x')", "sleep_ms(9999)", "error('x')", "txid_current()", "pg_get_viewdef(1)", "x::regclass",
]  # fmt: skip
_CALLS = [
    "lower({e})", "len({e}::VARCHAR)", "coalesce({e}, {e})", "abs({n})", "{n} + {n}", "{n} / {n}", "{e} || 'x'",
    "{e} = {e}", "{e} IN ({e}, {e})", "{n} BETWEEN {n} AND {n}", "{e} LIKE '%a%'", "{e} IS NULL",
    "CASE WHEN {e} = {e} THEN {e} END", "list_has_any({c}, ['a'])", "[{e}, {e}]", "{{'a': {e}}}",
    "list_transform([1, 2], lambda x: x + {n})", "CAST({e} AS VARCHAR)", "TRY_CAST({e} AS INTEGER)",
    "date_trunc('month', {c})", "regexp_matches({e}::VARCHAR, '{r}')", "(SELECT {e} FROM {t} LIMIT 1)",
    "EXISTS ({q})", "{e} IN ({q})", "md5({e}::VARCHAR)", "string_split({e}::VARCHAR, '.')", "{c}[1]",
    "greatest({e}, {e})", "strftime({c}, '%Y')", "epoch_ms({n})", "unnest([{n}, {n}])", "NOT {e}", "#1",
]  # fmt: skip
_AGGREGATES = [
    "count(*)",
    "sum({n})",
    "max({e})",
    "list({e})",
    "string_agg({e}::VARCHAR, ',')",
    "count(DISTINCT {e})",
]
_WORDS = "SELECT FROM WHERE ( ) , ; * . ' \" -- /* */ UNION ALL WITH AS COPY TO ATTACH SET PRAGMA f0 $1 [ ] { } :: =>".split()


class Fuzz:
    """Makes statements; the same seed makes the same ones."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._attempts = [*map(lines, (FILES, WRITES, DATABASES, SETTINGS, PYTHON))]

    def statement(self) -> str:
        """One statement, with the places of `sql_attempts` in it."""
        roll = self._random.random()
        if roll < 0.15:
            text = self._random.choice(self._random.choice(self._attempts))
        else:
            text = self._query(4)
        if roll < 0.15 or self._random.random() < 0.2:
            text = self._spoil(text)
        return text

    def _query(self, depth: int) -> str:
        pick = self._random
        made = f"SELECT {', '.join(self._item(depth) for _ in range(pick.randint(1, 3)))}"
        made += f" FROM {self._tables(depth)}" if pick.random() < 0.95 else ""
        if pick.random() < 0.4:
            made += f" WHERE {self._expression(depth - 1)}"
        if pick.random() < 0.2:
            made += pick.choice([" GROUP BY ALL", f" GROUP BY {self._expression(1)}", " GROUP BY ROLLUP (1)"])
        if pick.random() < 0.2:
            made += pick.choice([" ORDER BY 1", f" ORDER BY {self._expression(1)} DESC", " ORDER BY ALL"])
        if pick.random() < 0.3:
            made += f" LIMIT {pick.choice(['1', '10', self._expression(1)])}"
        if depth > 1 and pick.random() < 0.15:
            made = f"{made} {pick.choice(['UNION', 'UNION ALL', 'EXCEPT', 'INTERSECT'])} {self._query(depth - 2)}"
        if depth > 1 and pick.random() < 0.15:
            name = pick.choice(["x", "y", "studies", "duckdb_settings", '"{file}"'])
            body = (
                self._query(depth - 2) if pick.random() < 0.8 else pick.choice(self._attempts[1]).rstrip(";")
            )
            made = f"WITH {pick.choice(['', 'RECURSIVE '])}{name} AS ({body}) {made}"
        return made

    def _item(self, depth: int) -> str:
        roll = self._random.random()
        if roll < 0.1:
            return self._random.choice(
                ["*", "studies.*", "COLUMNS('m.*')", "* EXCLUDE (menu)", "COLUMNS(*)::VARCHAR"]
            )
        if roll < 0.25:
            return self._filled(self._random.choice(_AGGREGATES), depth)
        name = f" AS c{self._random.randint(0, 9)}" if roll < 0.8 else ""
        return self._expression(depth) + name

    def _tables(self, depth: int) -> str:
        pick = self._random
        made = self._table(depth)
        while pick.random() < 0.25:
            made += pick.choice([", ", " CROSS JOIN ", " NATURAL JOIN ", ", LATERAL "]) + self._table(depth)
        return made

    def _table(self, depth: int) -> str:
        roll = self._random.random()
        if roll < 0.06:
            return self._random.choice(_BAD_TABLES)
        if roll < 0.25 and depth > 1:
            return f"({self._query(depth - 2)}) q{self._random.randint(0, 9)}"
        if roll < 0.3:
            return f"range({self._random.choice(['3', '100000', '99999999999'])})"
        return self._random.choice([*VIEWS]) + self._random.choice(["", "", "", " a"])

    def _expression(self, depth: int) -> str:
        roll = self._random.random()
        if roll < 0.02:
            return self._random.choice(_BAD_CALLS)
        if depth <= 0 or roll < 0.6:
            return self._random.choice(
                [self._column(), "1", "'a'", "NULL", "true", "1.5", "DATE '2024-01-01'"]
            )
        return self._filled(self._random.choice(_CALLS), depth)

    def _column(self) -> str:
        if self._random.random() < 0.1:
            return self._random.choice(["studies.", "a.", "f0.rows."]) + self._random.choice(_COLUMNS)
        return self._random.choice(_USUAL)

    def _filled(self, shape: str, depth: int) -> str:
        makers = {
            "e": lambda: self._expression(depth - 1), "n": lambda: str(self._random.randint(-3, 10**6)),
            "c": self._column, "t": lambda: self._table(0), "q": lambda: self._query(depth - 2),
            "r": lambda: self._random.choice(["a*", "(a+)+$", "[", "x{999}"]),
        }  # fmt: skip
        found = re.sub(r"\{([encqtr])\}", lambda m: makers[m[1]](), shape)
        return found.replace("{{", "{").replace("}}", "}") if "{{" in shape else found

    def _spoil(self, text: str) -> str:
        words = re.findall(r"\s+|\w+|.", text)
        for _ in range(self._random.randint(1, 3)):
            at = self._random.randrange(len(words)) if words else 0
            roll = self._random.random()
            if roll < 0.3:
                words[at : at + 1] = []
            elif roll < 0.6:
                words[at:at] = [" ", self._random.choice(_WORDS), " "]
            elif roll < 0.8:
                words[at:at] = words[at : at + self._random.randint(1, 8)]
            else:
                words[at:at] = re.findall(
                    r"\s+|\w+|.", self._random.choice(self._random.choice(self._attempts))
                )
        return "".join(words)
