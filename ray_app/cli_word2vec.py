"""Commands on Word2Vec's vectors: training with chosen families, the export for the Embedding Projector, similarity, analogies, the quality report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ray_app.cli_options import ConfigPath, DataDir, ImdbDir, JsonPath, Seed, Source, console, settings_of, writable, write_json
from ray_app.cli_steps import run_until
from ugt.artifacts import EPISODES, ITEMS, PEOPLE, Artifact, read_table
from ugt.settings import Settings

word2vec_app = typer.Typer(no_args_is_help=True, help="What the co-occurrence vectors know. The vectors are trained first if they are not there.")

Families = Annotated[str | None, typer.Option(help="all, or names with commas between: history, person, context, ... (docs/data.md). Default: the settings'.")]
Count = Annotated[int, typer.Option("--count", "-n", help="How many.", min=1)]


def _settings(config: Path | None, families: str | None, source: str | None = None, data_dir: Path | None = None, **more: Any) -> Settings:
    named: Any = None if families is None else "all" if families == "all" else [name.strip() for name in families.split(",")]
    return settings_of(config, source, data_dir, more.get("imdb_dir"), more.get("seed"), **{"word2vec.families": named})


def train_word2vec(
    config: ConfigPath = None,
    families: Families = None,
    source: Source = None,
    data_dir: DataDir = None,
    imdb_dir: ImdbDir = None,
    seed: Seed = None,
    json_path: JsonPath = None,
) -> None:
    """Co-occurrence vectors from catalogue and events."""
    made = run_until("word2vec", _settings(config, families, source, data_dir, imdb_dir=imdb_dir, seed=seed), json_path)
    for family, why in made["corpus"].manifest.figures["empty"].items():
        console.print(f" no sentence   {family}: {why}", highlight=False, soft_wrap=True)


def _vectors(made: dict[str, Artifact]) -> Any:
    from gensim.models import KeyedVectors

    return KeyedVectors.load(str(made["word2vec"].path / "keyed_vectors.kv"))


def _labelled(settings: Settings) -> tuple[Any, Any]:
    """The vectors of these settings, trained if they are not there, and what their tokens are called."""
    from ugt.projector import Labels

    made = run_until("word2vec", settings)
    return _vectors(made), Labels(read_table(made["etl"].path / "items", ITEMS), read_table(made["etl"].path / "people", PEOPLE))


def export_projector(
    out: Annotated[Path, typer.Option(help="Folder to write vectors.tsv and metadata.tsv into.")],
    config: ConfigPath = None,
    families: Families = None,
    source: Source = None,
    data_dir: DataDir = None,
    imdb_dir: ImdbDir = None,
    seed: Seed = None,
    limit: Annotated[int, typer.Option(help="The most frequent tokens, at most this many: a browser shows some tens of thousands.", min=1)] = 50_000,
) -> None:
    """The co-occurrence vectors for the Embedding Projector: vectors.tsv and metadata.tsv (token, kind, name, genres, year)."""
    from ugt.artifacts import usable_folder
    from ugt.projector import write

    usable_folder(out, "--out")
    vectors, labels = _labelled(_settings(config, families, source, data_dir, imdb_dir=imdb_dir, seed=seed))
    count = write(vectors, labels, out, limit)
    left = f" ({len(vectors) - count:,} rarer ones left out: --limit)" if count < len(vectors) else ""
    console.print(
        f" {count:,} tokens{left} in {out}/vectors.tsv and metadata.tsv   next: load both in the Embedding Projector", highlight=False, soft_wrap=True
    )


def _show(found: list[tuple[str, float]], labels: Any, title: str, json_path: Path | None) -> None:
    table = Table("token", "what it is", "cosine", title=title, title_justify="left")
    for word, cosine in found:
        table.add_row(word, str(labels.of(word)), f"{cosine:.3f}")
    console.print(table)
    write_json(json_path, [{"token": word, "name": str(labels.of(word)), "cosine": round(cosine, 4)} for word, cosine in found])


@word2vec_app.command("similar")
def word2vec_similar(
    what: Annotated[str, typer.Argument(help="A token (MOV_tt0111161), a title or a name.")],
    kind: Annotated[str, typer.Option(help="Answer with tokens of this kind (MOV, DIR, GEN, ...) instead of its own.")] = "",
    config: ConfigPath = None,
    families: Families = None,
    source: Source = None,
    data_dir: DataDir = None,
    count: Count = 10,
    json_path: JsonPath = None,
) -> None:
    """The tokens nearest to one."""
    from ugt.vector_report import similar

    vectors, labels = _labelled(_settings(config, families, source, data_dir))
    asked = labels.token_of(what, vectors)
    _show(similar(vectors, asked, count, kind), labels, f"nearest to {asked}, {labels.of(asked)}", json_path)


@word2vec_app.command("analogy")
def word2vec_analogy(
    a: Annotated[str, typer.Argument(help="A is to B ...")],
    b: Annotated[str, typer.Argument(help="... as C is to what? Tokens, titles or names.")],
    c: Annotated[str, typer.Argument(help="C, of A's kind.")],
    config: ConfigPath = None,
    families: Families = None,
    source: Source = None,
    data_dir: DataDir = None,
    count: Count = 10,
    json_path: JsonPath = None,
) -> None:
    """A is to B as C is to what: a director, a film of theirs, another director."""
    from ugt.vector_report import analogy

    vectors, labels = _labelled(_settings(config, families, source, data_dir))
    asked = [labels.token_of(text, vectors) for text in (a, b, c)]
    title = f"{labels.of(asked[0])} is to {labels.of(asked[1])} as {labels.of(asked[2])} is to"
    _show(analogy(vectors, asked[0], asked[1], asked[2], count), labels, title, json_path)


@word2vec_app.command("report")
def word2vec_report(
    config: ConfigPath = None,
    families: Families = None,
    source: Source = None,
    data_dir: DataDir = None,
    imdb_dir: ImdbDir = None,
    seed: Seed = None,
    json_path: JsonPath = None,
) -> None:
    """Neighbours of the same director, series and genre against chance, and analogies."""
    from ugt.artifacts import CREDITS
    from ugt.vector_report import report

    writable(json_path, "--json")
    settings = _settings(config, families, source, data_dir, imdb_dir=imdb_dir, seed=seed)
    made = run_until("word2vec", settings)
    etl = made["etl"].path
    episodes = read_table(etl / "episodes", EPISODES) if (etl / "episodes").is_dir() else None
    items = read_table(etl / "items", ITEMS).sort_by("item_index")
    found = report(_vectors(made), items, read_table(etl / "credits", CREDITS), episodes, settings.word2vec.seed)
    table = Table(
        "10 nearest items share", "rate", "chance", "lift", "asked", title=f"{found['items']:,} items, {found['tokens']:,} tokens", title_justify="left"
    )
    for kind, of in found["neighbours"].items():
        table.add_row(kind, f"{of['rate']:.3f}", f"{of['chance']:.5f}", f"{of['lift']:.0f}x", f"{of['queries']:,}")
    console.print(table)
    table = Table("A : film of A :: B : film of B", "hit@10", "B alone", "chance", "asked", title_justify="left")
    for kind, of in found["analogies"].items():
        if of:
            table.add_row(kind, f"{of['hit@10']:.3f}", f"{of['person_alone_hit@10']:.3f}", f"{of['chance']:.5f}", f"{of['questions']:,}")
    console.print(table)
    write_json(json_path, found | {"corpus": made["corpus"].manifest.figures, "families": list(settings.word2vec.families)})
