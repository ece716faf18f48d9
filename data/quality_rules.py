"""The rules of the canonical tables: what must hold, how bad it is if it doesn't, and the share of rows that may break it.

Choices: what a single row must satisfy is a pandera check, and `schema` makes one `DataFrameSchema` of a table's checks and types; what needs the whole table
is a query (`data/quality_queries.py`). CRITICAL: a later step would fail or learn from wrong rows, so the run stops. ERROR: wrong data that
the steps survive. WARNING: unlikely, look at it. INFO: worth knowing. An empty value (null) passes a check unless the rule says `present`. What is
"in the future" is judged by the clock at the time of the check, which the report names.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import pandera.polars as pa
import polars as pl
import pyarrow

from data.quality_queries import CANONICAL, ROW, SCHEMAS, Ascending, Balanced, FewQuarantined, HasRows, QuarantineKept, Query, Refers, Unique, Written
from ugt.schema import ACTIONS, ITEM_TYPES

Severity = Literal["CRITICAL", "ERROR", "WARNING", "INFO"]
SEVERITIES: tuple[Severity, ...] = ("CRITICAL", "ERROR", "WARNING", "INFO")
ROLES = ("actor", "director", "writer")
FILMS = ("movie", "series", "episode", "video")  # item types that have a year, a runtime and people
FIRST_FILM, EVENTS_SINCE = 1870, 631_152_000  # Unix time of 1990
DAY = 86_400
ID_LENGTH = 128  # of `ugt.schema.Item.item_id`


@dataclass(frozen=True)
class Rule:
    """`name` is `table.rule`. One of `check` (of `column`, or of the row as a whole) and `query` is set; neither means the table's columns and types."""

    name: str
    severity: Severity
    meaning: str
    allowed: float = 0.0  # share of the rows that may break it
    column: str | None = None
    check: pa.Check | None = None
    query: Query | None = None
    reads: tuple[str, ...] = ()  # columns a check looks at

    @property
    def table(self) -> str:
        return self.name.split(".")[0]

    @property
    def of_columns(self) -> bool:
        return self.check is None and self.query is None


def _of(name: str, severity: Severity, holds: pa.Check | pl.Expr, meaning: str, allowed: float = 0.0, column: str | None = None) -> Rule:
    """A rule of a row: pandera's check of a column, or an expression over the row."""
    reads = tuple(holds.meta.root_names()) if isinstance(holds, pl.Expr) else (str(column),)
    check = pa.Check(lambda data: data.lazyframe.select(holds)) if isinstance(holds, pl.Expr) else holds
    check.name, check.error, check.n_failure_cases = name, meaning, 1  # rows are counted and shown by `data/quality_check.py`
    return Rule(name, severity, meaning, allowed, column, check, reads=reads)


def _whole(name: str, severity: Severity, query: Query, meaning: str, allowed: float = 0.0) -> Rule:
    return Rule(name, severity, meaning, allowed, query=query)


def _key(name: str, column: str, what: str) -> Rule:
    return _of(name, "CRITICAL", pa.Check.str_length(1, ID_LENGTH, ignore_na=False), f"{what}, 1 to {ID_LENGTH} characters", column=column)


def _range(name: str, severity: Severity, column: str, low: float, high: float, meaning: str, allowed: float = 0.0, present: bool = False) -> Rule:
    return _of(name, severity, pa.Check.in_range(low, high, ignore_na=not present), meaning, allowed, column)


def _elements(name: str, column: str) -> Rule:
    bad = pl.col(column).list.eval(pl.element().is_null() | (pl.element().str.strip_chars() == "")).list.any()
    return _of(name, "ERROR", (~bad), f"no element of {column} is empty")


def _items(now: datetime) -> list[Rule]:
    film = pl.col("item_type").is_in(FILMS)
    soon = now.year + 10
    return [
        _whole("items.not_empty", "CRITICAL", HasRows(), "the catalogue holds items"),
        _of("items.index_dense", "CRITICAL", pl.col("item_index").eq_missing(pl.col(ROW).cast(pl.Int32)), "row n of the catalogue has item_index n"),
        _key("items.id_present", "item_id", "every item has an id"),
        _whole("items.id_unique", "CRITICAL", Unique(("item_id",)), "no two items have the same id"),
        _whole("items.id_ascending", "CRITICAL", Ascending("item_id"), "items come in ascending order of their id"),
        _of("items.type_known", "CRITICAL", pa.Check.isin(ITEM_TYPES, ignore_na=False), f"the type is one of {', '.join(ITEM_TYPES)}", column="item_type"),
        _of("items.title_present", "CRITICAL", pl.col("title").is_not_null(), "every item has a title"),
        _of("items.title_not_blank", "ERROR", pa.Check.str_contains(r"\S"), "the title is not blank", column="title"),
        _of("items.title_clean", "WARNING", (~pl.col("title").str.contains(r"[\x00-\x1f\x7f]")), "the title holds no control characters"),
        _of("items.title_length", "WARNING", pa.Check.str_length(0, 500), "the title has at most 500 characters", column="title"),
        _range("items.year_possible", "ERROR", "year", 1800, 2200, "the year is between 1800 and 2200"),
        _range("items.year_plausible", "WARNING", "year", FIRST_FILM, soon, f"the year is between {FIRST_FILM} and {soon} (IMDb announces titles for 2115)"),
        _of("items.year_known", "INFO", (~film | pl.col("year").is_not_null()), "films have a year", 0.5),
        _of("items.runtime_not_negative", "ERROR", pa.Check.ge(0), "the runtime is not negative", column="runtime_minutes"),
        _range("items.runtime_plausible", "WARNING", "runtime_minutes", 0, 1440, "the runtime is at most a day", 0.001),
        _range("items.rating_range", "ERROR", "rating", 1, 10, "the rating is between 1 and 10"),
        _of("items.votes_not_negative", "ERROR", pa.Check.ge(0), "the number of votes is not negative", column="votes"),
        _of("items.rating_has_votes", "WARNING", pl.col("rating").is_null() == pl.col("votes").is_null(), "rating and votes are both there or both not"),
        _elements("items.genres_clean", "genres"),
        _of("items.genres_once", "WARNING", pl.col("genres").list.n_unique() == pl.col("genres").list.len(), "no genre is named twice"),
        _of("items.genres_known", "INFO", pl.col("genres").list.len().fill_null(0) > 0, "items have a genre", 0.5),
        _elements("items.countries_clean", "countries"),
        _of("items.imdb_id_form", "WARNING", pa.Check.str_matches(r"^tt\d{7,10}$"), "imdb_id is tt and 7 to 10 digits", column="imdb_id"),
        _whole("items.imdb_id_once", "WARNING", Unique(("imdb_id",)), "no two items are the same title of IMDb", 0.001),
        _whole("items.has_events", "INFO", Refers(("item_index",), "events"), "items have events", 0.5),
    ]


def _people(now: datetime) -> list[Rule]:
    return [
        _key("people.id_present", "person_id", "every person has an id"),
        _whole("people.id_unique", "CRITICAL", Unique(("person_id",)), "no two people have the same id"),
        _of("people.name_present", "ERROR", pa.Check.str_contains(r"\S", ignore_na=False), "every person has a name", column="name"),
        _range("people.birth_year_plausible", "WARNING", "birth_year", 1000, now.year, f"the year of birth is between 1000 and {now.year}", 0.001),
        _elements("people.professions_clean", "professions"),
        _whole("people.has_credits", "INFO", Refers(("person_id",), "credits"), "people have a credit"),
    ]


def _credits() -> list[Rule]:
    return [
        _whole("credits.item_known", "CRITICAL", Refers(("item_index", "item_id"), "items"), "item_index and item_id are those of one item"),
        _of("credits.item_present", "CRITICAL", pl.col("item_index").is_not_null() & pl.col("item_id").is_not_null(), "every credit names an item"),
        _key("credits.person_present", "person_id", "every credit names a person"),
        _whole("credits.person_known", "WARNING", Refers(("person_id",), "people"), "the person is in people (a head of IMDb's files covers few)", 0.01),
        _of("credits.role_known", "CRITICAL", pa.Check.isin(ROLES, ignore_na=False), f"the role is one of {', '.join(ROLES)}", column="role"),
        _of("credits.ordering", "ERROR", pa.Check.ge(0, ignore_na=False), "the place in the credits is a number from 0", column="ordering"),
        _whole("credits.once", "ERROR", Unique(("item_id", "person_id", "role")), "a person has a role in an item once"),
    ]


def _users() -> list[Rule]:
    return [
        _key("users.id_present", "user_id", "every user has an id"),
        _whole("users.id_unique", "CRITICAL", Unique(("user_id",)), "no two users have the same id"),
        _range("users.age_range", "ERROR", "age", 0, 120, "the age is between 0 and 120"),
        _of("users.gender_not_blank", "WARNING", pa.Check.str_contains(r"\S"), "a gender that is given is not blank", column="gender"),
        _of("users.occupation_not_blank", "WARNING", pa.Check.str_contains(r"\S"), "an occupation that is given is not blank", column="occupation"),
        _whole("users.has_events", "WARNING", Refers(("user_id",), "events"), "users have events"),
    ]


def _events(now: datetime) -> list[Rule]:
    latest = int(now.timestamp()) + DAY
    time, value, rated = pl.col("timestamp"), pl.col("value"), pl.col("action") == "rate"
    return [
        _whole("events.not_empty", "CRITICAL", HasRows(), "there are events"),
        _key("events.id_present", "event_id", "every event has an id"),
        _whole("events.id_unique", "CRITICAL", Unique(("event_id",)), "no two events have the same id, so each counts once"),
        _key("events.user_present", "user_id", "every event names a user"),
        _whole("events.user_known", "CRITICAL", Refers(("user_id",), "users"), "the user is in users"),
        _of("events.item_present", "CRITICAL", pl.col("item_index").is_not_null() & pl.col("item_id").is_not_null(), "every event names an item"),
        _whole("events.item_known", "CRITICAL", Refers(("item_index", "item_id"), "items"), "item_index and item_id are those of one item"),
        _of("events.action_known", "CRITICAL", pa.Check.isin(ACTIONS, ignore_na=False), f"the action is one of {', '.join(ACTIONS)}", column="action"),
        _of("events.value_finite", "CRITICAL", (value.is_finite()), "the value is a number, not infinite"),
        _of("events.rating_present", "ERROR", (~rated | value.is_not_null()), "an event that rates has a value"),
        _of("events.rating_range", "ERROR", (~rated | value.is_between(0, 10)), "the value of a rating is between 0 and 10"),
        _of("events.time_present", "CRITICAL", pa.Check.ge(0, ignore_na=False), "the time is seconds from 1970, 0 where there is none", column="timestamp"),
        _of(
            "events.time_past",
            "ERROR",
            pa.Check.le(latest),
            f"no event is later than {datetime.fromtimestamp(latest, now.tzinfo):%Y-%m-%d}",
            column="timestamp",
        ),
        _of("events.time_plausible", "WARNING", (time == 0) | (time >= EVENTS_SINCE), "no event is of before 1990"),
        _of("events.time_known", "INFO", (time != 0), "events have a time", 0.5),
        _of(
            "events.order_present",
            "CRITICAL",
            pa.Check.ge(0, ignore_na=False),
            "the place in the source file is a number from 0: it breaks ties",
            column="order",
        ),
        _whole(
            "events.once",
            "INFO",
            Unique(("user_id", "item_id", "action", "timestamp"), where=time > 0),
            "a user does one thing with an item once at a moment",
            0.01,
        ),
    ]


def rules(now: datetime) -> tuple[Rule, ...]:
    """Every rule, as of `now` (with a time zone)."""
    columns = [Rule(f"{table}.columns", "CRITICAL", "every part has the columns and types of ugt/artifacts.py") for table in CANONICAL]
    run = [
        _whole("accounting.balanced", "CRITICAL", Balanced(), "of every source table: rows in = rows out + filtered + duplicate + quarantined"),
        _whole("accounting.written", "CRITICAL", Written(), "the files hold as many rows as the run says it wrote"),
        _whole("quarantine.kept", "ERROR", QuarantineKept(), "every row that was quarantined is in the quarantine"),
        _whole("quarantine.few", "WARNING", FewQuarantined(0.01), "no source table lost more than 1% of its rows to quarantine"),
    ]
    return (*run, *columns, *_items(now), *_people(now), *_credits(), *_users(), *_events(now))


def polars_types(schema: pyarrow.Schema) -> dict[str, pl.DataType]:
    return dict(pl.DataFrame(pl.from_arrow(schema.empty_table())).schema)


def schema(table: str, chosen: tuple[Rule, ...]) -> pa.DataFrameSchema:
    """pandera's schema of a table: the types of `ugt.artifacts`, and those of the rules that judge a row."""
    checks: dict[str | None, list[pa.Check]] = {}
    for rule in chosen:
        if rule.table == table and rule.check is not None:
            checks.setdefault(rule.column, []).append(rule.check)
    types = polars_types(SCHEMAS[table])
    columns = {name: pa.Column(kind, nullable=True, checks=checks.get(name, [])) for name, kind in types.items()}
    return pa.DataFrameSchema(columns, checks=checks.get(None, []), name=table)
