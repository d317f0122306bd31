"""Sacred's own options and files of settings: what of them is refused before a run begins, and the way out."""

from __future__ import annotations

import ast
import importlib.util
import json
import textwrap
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from das_gym.progress import waiting
from das_gym.runs import plain_settings

DATABASES = {"--mongo_db": ("-m", "pymongo", "mongo"), "--sql": ("-s", "sqlalchemy", "sql")}
"""Sacred's options for databases, as they are typed, the library that each needs, and the extra that brings it."""

DATABASE_MS = 5000
"""So long a MongoDB may take to answer."""

REFUSED = {
    "--queue": "-q: nothing here begins a queued run later; leave it out",
    "--id": "-i: runs are numbered by their folder; leave it out, and -c TEXT or runs_dir=FOLDER tells runs apart",
    "--tiny_db": "-t: these runs are not kept in a TinyDB; leave it out, and use -c TEXT to tell runs apart",
    "--s3": "-S: these runs are not kept in S3; leave it out, and copy the run's folder",
    "--enforce_clean": "-e: these runs keep their sources and do not look at git; leave it out",
}
"""Sacred's options that mean nothing here, and what to do."""

CONFIG_FILES = (".json", ".yaml", ".yml")
"""What a file of settings behind `with` ends in; Sacred would take pickles, too, which run what they hold."""


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse those of Sacred's options that mean nothing here, and a database that is not there.

    Raises:
        ValueError: an option of `REFUSED`; a library that `-m` or `-s` lacks, with its extra; no answer.
    """
    for option, told in REFUSED.items():
        if options.get(option):
            raise ValueError(told)
    for option, (flag, library, extra) in DATABASES.items():
        if not options.get(option):
            continue
        if importlib.util.find_spec(library) is None:
            raise ValueError(f"{flag} needs {library}: pip install 'das_gym[{extra}]'")
        try:
            with waiting("asking the database"):
                _ask_database(option, str(options[option]))
        except Exception as error:  # each library has its own
            told = textwrap.shorten(str(error), 160, placeholder=" ...")
            raise ValueError(f"{flag}: no database to write to ({told}); the run's folder has all without {flag}") from error


def _ask_database(option: str, place: str) -> None:
    """Raise what a database's library raises where it does not answer."""
    if option == "--sql":
        import sqlalchemy

        sqlalchemy.create_engine(place).connect().close()
        return
    import pymongo
    from sacred.observers.mongo import parse_mongo_db_arg

    try:
        url = parse_mongo_db_arg(place)["url"]
    except AttributeError:
        raise ValueError(f"{place!r} is not of the form host:port:name") from None
    client: Any = pymongo.MongoClient(url, serverSelectionTimeoutMS=DATABASE_MS)
    with closing(client):
        client.admin.command("ping")


def check_words(words: Iterable[str]) -> None:
    """Refuse a setting that names an object of Python's, which Sacred would make: a command may be copied from anywhere.

    Args:
        words: As they are typed behind a command.

    Raises:
        ValueError: names the setting.
    """
    for word in words:
        name, _, value = word.partition("=")
        try:
            literal = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue  # a text
        plain_settings(literal, name)


def read_config_file(path: str) -> dict[str, Any]:
    """The settings in a file behind `with`, as plain values. Sacred's own reader of JSON would make any object it names.

    Raises:
        ValueError: it holds no settings, or objects of Python's; names it.
    """
    if Path(path).suffix not in CONFIG_FILES:
        raise ValueError(f"{path} is no file of settings; give one that ends in {' or '.join(CONFIG_FILES)}")
    from sacred.config.config_files import load_config_file

    try:
        content = json.loads(Path(path).read_bytes()) if Path(path).suffix == ".json" else load_config_file(path)
    except Exception as error:  # json's, yaml's
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())}); mend it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no settings by name; give name: value")
    return dict(plain_settings(content, Path(path)))
