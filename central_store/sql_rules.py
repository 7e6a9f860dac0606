"""Which SQL from outside may run: an allow-list over DuckDB's own parse tree. Pure.

Guarantees: a tree passes only if every node, key, table, function and type in it is known here. So what a
later DuckDB adds is refused until somebody puts it on the list. Tables are the views of `schemas.views` and
the statement's own CTEs, by bare name; a CTE may not have the name of anything the database has. A refusal
says which part, by its place in the statement, and quotes nothing but names DuckDB itself knows: no value and
no word of whoever asked.

It is one layer of several (`central_store.sql_child`): what would get past it finds no file, no other row, no
key and no environment.

Leaves to others: parsing, running (`central_store.sql_child`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from central_store.refused import Refused
from schemas.views import VIEWS

Names = Callable[[], Collection[str]]

_NOWHERE = 2**63
_DEEPEST = 400
"""Levels of the parse tree: three for each operator in a row. A statement a person writes has a few dozen."""
_MOST_NODES = 20_000
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}", re.ASCII)

NODES = frozenset(
    "SELECT_NODE SET_OPERATION_NODE RECURSIVE_CTE_NODE "
    "EMPTY BASE_TABLE SUBQUERY JOIN TABLE_FUNCTION EXPRESSION_LIST "
    "ORDER_MODIFIER LIMIT_MODIFIER DISTINCT_MODIFIER ASCENDING DESCENDING ORDER_DEFAULT".split()
)
"""Query nodes, tables, modifiers and orders: dictionaries with a `type` and no `class`."""
CLASSES = frozenset(
    "BETWEEN CASE CAST COLLATE COLUMN_REF COMPARISON CONJUNCTION CONSTANT FUNCTION LAMBDA OPERATOR "
    "POSITIONAL_REFERENCE STAR SUBQUERY TYPE WINDOW".split()
)
"""Expressions."""
OPERATORS = frozenset(
    "ARRAY_EXTRACT ARRAY_SLICE COMPARE_IN COMPARE_NOT_IN GROUPING_FUNCTION OPERATOR_COALESCE "
    "OPERATOR_IS_NOT_NULL OPERATOR_IS_NULL OPERATOR_NOT OPERATOR_NULLIF OPERATOR_TRY STRUCT_EXTRACT "
    "ARRAY_CONSTRUCTOR OPERATOR_UNPACK".split()
)
TABLE_FUNCTIONS = frozenset({"range", "generate_series", "unnest"})
"""In FROM: others of the same name as a harmless function read tables by name."""
FUNCTIONS = frozenset(
    # operators
    "+ - * / // % ** ^ & | ~ << >> || ~~ !~~ ~~* !~~* ~~~ ^@ @> <@ && "
    "like_escape not_like_escape ilike_escape not_ilike_escape "
    # numbers
    "abs cbrt ceil ceiling cos even exp factorial floor gcd greatest isfinite isinf isnan lcm least ln log "
    "log10 log2 mod pi pow power radians degrees round round_even sign sin sqrt tan trunc "
    # texts
    "ascii base64 bin chr concat concat_ws contains ends_with format_bytes formatReadableDecimalSize "
    "formatReadableSize hash hex instr lcase left length len lower ltrim md5 nfc_normalize octet_length "
    "overlay position prefix regexp_escape regexp_extract regexp_extract_all regexp_full_match "
    "regexp_matches regexp_replace regexp_split_to_array replace reverse right rtrim sha256 split "
    "split_part starts_with str_split string_split string_split_regex string_to_array strip_accents strlen "
    "strpos substr substring suffix translate trim ucase unhex upper url_decode url_encode "
    # dates and times
    "age current_date current_timestamp date_add date_diff date_part date_sub date_trunc datediff datepart "
    "datesub datetrunc day dayname dayofmonth dayofweek dayofyear days_in_month decade century epoch "
    "epoch_ms epoch_ns epoch_us era get_current_timestamp hour isodow isoyear julian last_day make_date "
    "make_time make_timestamp make_timestamptz microsecond millennium millisecond minute month monthname "
    "now quarter second strftime strptime try_strptime time_bucket timezone to_centuries to_days to_decades "
    "to_hours to_microseconds to_milliseconds to_minutes to_months to_quarters to_seconds to_timestamp "
    "to_weeks to_years today transaction_timestamp week weekday weekofyear year yearweek "
    # lists, structs, maps
    "apply array_append array_concat array_contains array_distinct array_extract array_filter array_has "
    "array_has_all array_has_any array_indexof array_intersect array_length array_pop_back array_pop_front "
    "array_position array_prepend array_reverse array_slice array_sort array_to_string array_transform "
    "array_unique cardinality element_at filter flatten generate_series grade_up list_any_value list_append "
    "list_avg list_cat list_concat list_contains list_count list_distinct list_element list_extract "
    "list_filter list_first list_has list_has_all list_has_any list_indexof list_intersect list_last "
    "list_max list_median list_min list_pack list_position list_prepend list_reduce list_reverse "
    "list_reverse_sort list_select list_slice list_sort list_string_agg list_sum list_transform list_unique "
    "list_value list_where list_zip map map_contains map_entries map_extract map_from_entries map_keys "
    "map_values range reduce row struct_concat struct_extract struct_insert struct_pack unnest unpivot_list "
    # logic and types
    "coalesce if ifnull nullif typeof "
    # aggregates
    "any_value approx_count_distinct approx_quantile approx_top_k arbitrary arg_max arg_max_null arg_min "
    "arg_min_null argmax argmin array_agg avg bit_and bit_or bit_xor bool_and bool_or corr count count_if "
    "count_star countif covar_pop covar_samp entropy favg first fsum geomean geometric_mean group_concat "
    "histogram kurtosis last list listagg mad max max_by mean median min min_by mode product quantile "
    "quantile_cont quantile_disc regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope skewness "
    "stddev stddev_pop stddev_samp string_agg sum sum_no_overflow var_pop var_samp variance "
    # windows
    "cume_dist dense_rank fill first_value lag last_value lead nth_value ntile percent_rank rank rank_dense "
    "row_number".split()
)
"""What a statement may call: nothing that reads settings, files, sequences or other queries, or sleeps."""
TYPES = frozenset(
    "BIGINT BIT BLOB BOOLEAN DATE DECIMAL DOUBLE FLOAT HUGEINT INTEGER INTERVAL LIST MAP SMALLINT STRUCT "
    "TIME TIMESTAMP TIMESTAMP_S TIMESTAMP_MS TIMESTAMP_NS TINYINT UBIGINT UHUGEINT UINTEGER USMALLINT "
    "UTINYINT UUID VARCHAR ARRAY".split()
) | {"TIMESTAMP WITH TIME ZONE", "TIME WITH TIME ZONE"}
COLLATIONS = frozenset({"nocase", "noaccent", "nfc"})
_KNOWN_TO_SYSTEM = frozenset(
    "current_catalog current_database current_role current_schema current_user session_user user".split()
)
"""Words that SQL reads as a function when no column has the name."""

_NONE = frozenset({"sample", "at_clause"})
"""Keys that say something only for what is not allowed."""
_EMPTY = frozenset({"schema", "catalog", "schema_name", "catalog_name"})
"""Keys that would lead to another schema or database."""
KEYS = (
    frozenset(
        "aggregate_handling alias aliases arg_orders arguments case_checks child children class collation "
        "column column_name_alias column_names columns comparison_type condition cte_map cte_name "
        "default_expr delim_flipped distinct distinct_on_targets duplicate_eliminated_columns else_expr end "
        "end_expr exclude_clause exclude_list expected_names expected_types export_state expr expression "
        "filter filter_expr from_table function function_name group_expressions group_sets has_ignore_nulls "
        "having id ignore_nulls index input is_implicit is_legacy_function_call is_null is_operator "
        "is_percentage join_type key "
        "key_targets kind left lhs limit limit_type literal lower map materialized modifiers name "
        "named_param_map nearest_approx nearest_count nearest_order_type node null_order offset offset_expr "
        "order_bys orders partitions path payload_aggregates qualified_exclude_list qualified_name qualify "
        "query_location query_location_length query_node ranking_expression ref_type relation_name "
        "rename_list replace_list right select_list setop_all setop_type start start_expr subquery "
        "subquery_type syntax_type table table_name text then_expr try_cast type type_expr type_info "
        "type_name union_all unit upper using_columns value values when_expr where_clause "
        "with_ordinality".split()
    )
    | _NONE
    | _EMPTY
)
"""Every key a node may have."""


def check(tree: Mapping[str, Any], sql: str, known: Names, functions: Names) -> None:
    """Let a parsed statement pass, or raise `Refused`.

    Args:
        tree: what `json_serialize_sql` gave.
        sql: its text.
        known: gives the names of all tables, views and functions the database has, lower case: no CTE may
            take one, or it could mean the other where the CTE is out of sight.
        functions: gives the names of all functions it has, lower case: only those are quoted in a refusal.
    """
    if tree.get("error") is not False:
        kind = str(tree.get("error_type"))
        if kind == "parser":
            raise refused("this is not SQL", sql, tree.get("position"))
        raise refused("only one SELECT may be asked", sql)
    statements = tree.get("statements")
    if not isinstance(statements, list) or len(statements) != 1:
        raise refused("only one statement may be asked at a time", sql)
    _Walk(sql, known, functions).visit(statements[0], 0)


def refused(why: str, sql: str, position: object = None) -> Refused:
    """A refusal that names a place: `position` is in bytes of the statement's UTF-8, as DuckDB counts."""
    place = ""
    text = str(position)
    if text.isdecimal() and int(text) < _NOWHERE:
        before = sql.encode("utf-8", "replace")[: int(text)].decode("utf-8", "ignore")
        place = f", at character {len(before) + 1}"
    return Refused("sql-refused", why + place)


class _Walk:
    def __init__(self, sql: str, known: Names, functions: Names) -> None:
        self._sql = sql
        self._known = known
        self._functions = functions
        self._ctes: set[str] = set()
        self._count = 0

    def _refuse(self, why: str, node: Mapping[str, Any]) -> Refused:
        return refused(why, self._sql, node.get("query_location"))

    def visit(self, value: Any, depth: int) -> None:
        self._count += 1
        if depth > _DEEPEST or self._count > _MOST_NODES:
            raise refused("the statement is nested too deeply or too long", self._sql)
        if isinstance(value, list):
            for item in value:
                self.visit(item, depth + 1)
        elif isinstance(value, dict):
            self._node(value)
            for item in value.values():
                if isinstance(item, (dict, list)):
                    self.visit(item, depth + 1)
        else:
            self._count -= 1  # a name or a number of its own costs nothing

    def _node(self, node: dict[str, Any]) -> None:
        kind = node.get("type")
        if "class" in node:
            self._expression(node, str(node["class"]), str(kind))
        elif isinstance(kind, str):
            if kind not in NODES:
                raise self._refuse("this kind of query or table is not allowed", node)
            if kind == "BASE_TABLE":
                self._table(node)
            elif kind == "TABLE_FUNCTION" and node["function"].get("function_name") not in TABLE_FUNCTIONS:
                raise self._refuse("this function is not allowed as a table", node)
        if unknown := set(node) - KEYS:
            raise self._refuse(f"the statement has a part that is not allowed ({min(unknown)[:40]})", node)
        if any(node.get(key) for key in _NONE):
            raise self._refuse("samples and versions of tables are not allowed", node)
        if any(node.get(key) for key in _EMPTY) or len(node.get("path") or []) > 1:
            raise self._refuse("names of schemas and databases are not allowed", node)
        if "cte_map" in node:
            self._with(node["cte_map"])

    def _with(self, ctes: Any) -> None:
        for entry in ctes["map"]:
            name = str(entry["key"])
            if not _NAME.fullmatch(name) or name.lower() in self._known():
                raise refused("a name in WITH is taken, or not made of letters, digits and _", self._sql)
            self._ctes.add(name.lower())

    def _table(self, node: dict[str, Any]) -> None:
        name = str(node.get("table_name"))
        if name.lower() not in VIEWS and name.lower() not in self._ctes:
            raise self._refuse(f"there are only the tables {', '.join(VIEWS)}", node)

    def _expression(self, node: dict[str, Any], name: str, kind: str) -> None:
        if name not in CLASSES or (name == "OPERATOR" and kind not in OPERATORS):
            raise self._refuse("this kind of expression is not allowed", node)
        if name in ("FUNCTION", "WINDOW"):
            function = str(node.get("function_name")).lower()
            if function not in FUNCTIONS and function not in _LOWER:
                quoted = f" {function}" if function in self._functions() else ""
                raise self._refuse(f"the function{quoted} is not allowed", node)
        elif name == "TYPE" and str(node.get("type_name")).upper() not in TYPES:
            raise self._refuse("this type is not allowed", node)
        elif name == "COLLATE" and str(node.get("collation")).lower() not in COLLATIONS:
            raise self._refuse("this collation is not allowed", node)
        elif name == "COLUMN_REF":
            names = node.get("column_names") or []
            if len(names) == 1 and str(names[0]).lower() in _KNOWN_TO_SYSTEM:
                raise self._refuse("the function of this name is not allowed", node)


_LOWER = frozenset(name.lower() for name in FUNCTIONS)
